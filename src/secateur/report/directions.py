"""The sections about singular directions: what each is worth, how well that was foretold, the way, what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.calibration_plot import ENOUGH, by_size, kept, measured, scatter, spearman
from secateur.report.cuts import NUMBERED
from secateur.report.frame import Figures, Record, Section, place, section, worst_allowed
from secateur.report.markup import change, key, metric_name, number, signed, table, text
from secateur.report.spectra import harm_map, name_of, spectra, worth_showing
from secateur.report.trajectory_plot import stops, walk


def _record(analysis: Record) -> Record:
    return analysis.get("directions") or {}


def effects(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """The map of all matrices, and effects along the spectrum of those that were cut or matter most."""
    record = _record(analysis)
    matrices = [one for one in record.get("matrices") or () if one["index"]]
    if not matrices:
        return ""
    shown = worth_showing(matrices)
    whole = harm_map(matrices)
    few = max(one["block"] for one in matrices) < NUMBERED
    overview = place("harm", [whole], figures, layout="duo words" if few else "wide")
    panels = place("directions", spectra(shown), figures, layout="multiples words")
    return section(
        "directions",
        "What each direction is worth",
        _effects_lead(record),
        _scale(any(one["removed"] for one in matrices)),
        overview,
        _shown_words(matrices, shown),
        key(
            ("square", "stays"),
            ("square accent", "removed"),
            ("thin", "singular values, on a scale of their own"),
        ),
        panels,
        _no_words(record, matrices),
    )


def _effects_lead(record: Record) -> str:
    order = "second order" if record.get("second_order") else "first order"
    what = "whitened singular direction" if record.get("whitened") else "singular direction"
    heads = " (attention heads have their own)" if record.get("per_head") else ""
    return (
        f"What the loss is predicted to do, to {order}, when one {what}{heads} alone is removed and its mean effect "
        f"stays as a bias; in nats, read on {record['n']:,} examples. Below zero the model does better without it."
    )


def _scale(cut: bool) -> str:
    ends = "<span>no harm</span><span>a quarter</span><span>the most harm</span>"
    strip = f'<div class="scale root"><i></i><div>{ends}</div></div>'
    return f'<div class="bar-row">{strip}{key(("frame", "directions removed")) if cut else ""}</div>'


def _shown_words(matrices: Sequence[Record], shown: Sequence[Record]) -> str:
    if len(shown) == len(matrices):
        return ""
    cut, all_cut = (sum(bool(one["removed"]) for one in some) for some in (shown, matrices))
    unit = "heads and matrices" if any(one.get("head") is not None for one in matrices) else "matrices"
    most = f"the {cut:,} of {all_cut:,} {unit} with removed directions that hurt most"
    spared = f"{'all' if cut > 1 else ''} {cut:,} {unit} with removed directions"
    words = most if cut < all_cut else spared if cut else ""
    rest = len(shown) - cut
    words += f"{' and ' if words else ''}the {rest:,} that hurt most of the others" if rest else ""
    return f'<p class="note">Below: {words.strip()}. The map has them all.</p>'


def _no_words(record: Record, matrices: Sequence[Record]) -> str:
    gone = any(one["removed"] for one in matrices)
    said = (
        "None of the removed directions writes to the stream by linear maps, so none can be read as tokens."
    )
    return f'<p class="note">{said}</p>' if gone and not record.get("words") else ""


def predictions(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """Predicted against measured, and how often promises were kept; one sentence where there is but a plan or two."""
    record = _record(analysis)
    path = record.get("path") or ()
    if not path:
        return ""
    lead = (
        "The sum of the predicted effects of all directions that a plan adds, against what the loss then did on the "
        "selection split."
    )
    title = "Was the prediction right?"
    if len(path) < ENOUGH:
        return section("predictions", title, lead, "".join(map(_alone, path)))
    shares = by_size(path)
    found = [scatter(path, record["chosen"]), *([shares] if shares else [])]
    boxes = place("predictions", found, figures, layout="duo")
    return section("predictions", title, lead, _agreement(path), _scatter_key(record), boxes)


def _alone(step: Record) -> str:
    said = f"predicted {signed(step['predicted'])} nats, measured {signed(measured(step))} nats"
    return f"<p>{step['added']:,} directions at once: {text(said)} per token on {step['n']:,} examples.</p>"


def _agreement(path: Sequence[Record]) -> str:
    rho, (did, promised) = spearman(path), kept(path)
    said = [f"Spearman’s rank correlation over {len(path):,} plans: {change(rho, 'rho')}."]
    if promised:
        said.append(
            f"Of {promised:,} that were predicted to lower the loss, {did:,} did ({number(did / promised, 'share')})."
        )
    if rho is not None and rho < 0 and promised:
        said.append("Larger promises were kept less, which is why every plan is judged.")
    return f'<p class="aside">{text(" ".join(said))}</p>'


def _scatter_key(record: Record) -> str:
    several = len({step["round"] for step in record["path"]}) > 1
    word = "steps" if record["protocol"] == "removal" else "rounds"
    items = [("depth", f"first to last of the {word}")] if several else []
    items += [("dot open", "left the race early")] if not all(s["complete"] for s in record["path"]) else []
    items += [("dot chosen", "taken")] if record["chosen"] else []
    return key(*items, ("line truth", "as predicted"), ("line base", "no change"))


def removal(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """The metric and the loss along the way to the plan."""
    record = _record(analysis)
    boxes = place("walk", walk(record), figures, layout="pair") if record else ""
    if not boxes:
        return ""
    by_steps = record["protocol"] == "removal"
    lead = (
        "Each step removes more directions; what is left is judged on the selection split."
        if by_steps
        else "Each round takes the directions that help most, after those that the rounds before took; judged on the "
        "selection split."
    )
    limit = worst_allowed(record, stops(record)[0].value)
    legend = key(("dot chosen", "chosen"), *((("line base", "bound"),) if limit is not None else ()))
    return section("removal", "How far it went", lead, _end(record), legend, boxes)


def _end(record: Record) -> str:
    end = [stop for stop in stops(record) if stop.taken][-1]
    name = metric_name(record["metric"])
    value = f"{name[:1].lower()}{name[1:]} {number(end.value, record['metric_unit'])}"
    what = f"{end.removed:,} of {record['total']:,} directions" if end.removed else "nothing"
    return f'<p class="aside">{text(f"Chosen: {what} removed, {value}.")}</p>'


def words(verdict: Record, plan: Record, analysis: Record, figures: Figures) -> str:
    """Tokens that the removed directions raise and lower, the most harmful directions first."""
    record = _record(analysis)
    own = {str(one["site"]): one for one in record.get("matrices") or ()}
    rows = [_word_row(item, own.get(str(item["site"]), {})) for item in record.get("words") or ()]
    head = ("direction", "predicted, nats", "one way", "the other way")
    body = f'<div class="said">{table(head, rows)}</div>' if rows else ""
    lead = (
        "Tokens that a removed direction raises most where it points one way, and where it points the other, read "
        "through the unembedding. The sign of a singular direction is arbitrary, and only directions of o, down and "
        "(through o) v reach the stream by linear maps, so only these have words."
    )
    return section("words", "What the removed directions say", lead, body)


def _word_row(item: Record, one: Mapping[str, Any]) -> list[str]:
    per_head = one.get("head") is not None
    head, number_ = divmod(item["direction"], one["of"]) if per_head else (None, item["direction"])
    name = f"{name_of({'site': item['site'], 'head': head})}, direction {number_}"
    return [text(name), text(signed(item["effect"])), _tokens(item["more"]), _tokens(item["less"])]


def _tokens(tokens: Sequence[tuple[str, float]]) -> str:
    return " ".join(f'<code title="logit {value:+.2f}">{_visible(token)}</code>' for token, value in tokens)


def _visible(token: Any) -> str:
    """Without the space it begins with; white space alone as Python writes it."""
    return text(str(token).strip() or repr(str(token)))


SECTIONS: tuple[Section, ...] = (effects, predictions, removal, words)
