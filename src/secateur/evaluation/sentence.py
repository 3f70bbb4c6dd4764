"""Put the verdict in one plain sentence, with what the checkpoint holds. From the record alone."""

from __future__ import annotations

from secateur.core.comparison import ALPHA, IMPROVES, WORSE
from secateur.core.noninferiority import NOT_WORSE, bound_text, margin_text
from secateur.core.records.verdict import MemberRecord, VerdictRecord
from secateur.core.score import few_groups


def sentence(verdict: VerdictRecord) -> str:
    """Return the verdict in one plain sentence. The `sentence` of the record itself is not read."""
    scale, unit = (100, " %") if verdict.unit == "share" else (1, f" {verdict.unit}")
    digits, step = (".1f", " points") if verdict.unit == "share" else (".3f", "")
    before, after, difference = (
        part.value * scale for part in (verdict.before, verdict.after, verdict.difference)
    )
    metric = verdict.metric.replace("_", " ")
    several = ", as many of " + " as of ".join(member.name for member in verdict.tasks)
    n = f"{verdict.n} test examples{several if verdict.tasks else ''}"
    if not verdict.cut:
        return (
            f"{_why_nothing(verdict)}, so the model is unchanged: {metric} {before:{digits}}{unit} on {n}."
            f"{_what_it_holds(verdict)}"
        )
    ci, p, openings = verdict.difference.ci, verdict.p_value, verdict.openings
    ends = ", ".join(f"{end * scale:+{digits}}" for end in ci) if ci else few_groups(verdict.groups)
    test = verdict.test + (f", p corrected for {openings} openings of this split" if openings > 1 else "")
    bounded = verdict.non_inferiority
    bound = f"; {bound_text(bounded)}" if bounded else ""
    members = f" Task by task: {', '.join(map(_member, verdict.tasks))}." if verdict.tasks else ""
    return (
        f"On {n}{',' if verdict.tasks else ''} that nothing was chosen by, {metric} went from "
        f"{before:{digits}}{unit} to {after:{digits}}{unit}: {difference:+{digits}}{step} [{ends}], "
        f"p {'< 1e-12' if p < 1e-12 else f'= {p:.2g}'} ({test}){bound}.{members}{_what_it_holds(verdict)}"
    )


def _why_nothing(verdict: VerdictRecord) -> str:
    """Say why the search took nothing."""
    choice = verdict.search.choice
    if choice is None:
        gainless = verdict.search.protocol in ("threshold", "paper")
        return (
            "No direction is predicted to hurt"
            if gainless
            else "Nothing could go within the bound (--max-loss)"
        )
    if not choice.better:
        return f"None of {choice.tried} cuts did better on the selection split"
    return (
        f"The selection split does not show that a cut helps (the best of {choice.tried}: "
        f"p = {choice.p_value:.2g}, corrected for all of them)"
    )


def _what_it_holds(verdict: VerdictRecord) -> str:
    """Say what the checkpoint holds, where that is not what one would expect from the word."""
    handed = verdict.handed_over
    if handed.unproven:
        which = "the cut plan" if verdict.cut else "the best plan that was tried"
        also = "" if verdict.cut else " (not measured on test)"
        return (
            f" The checkpoint holds the unchanged model; {which} lies in {handed.unproven}{also}, and "
            "--keep-unproven writes the cut model."
        )
    fine = verdict.verdict == IMPROVES or verdict.verdict.startswith(NOT_WORSE)
    if fine or handed.holds == "original":
        return ""
    if verdict.verdict == WORSE and verdict.non_inferiority:
        bounded = verdict.non_inferiority
        margin = margin_text(bounded.margin if bounded.decides is None else bounded.decides, bounded.unit)
        return f" THE CHECKPOINT HOLDS THE CUT MODEL, worse than the margin of {margin} allows."
    choice = verdict.search.choice
    unshown = ""
    if choice is not None and not choice.shown:  # the cut was kept on request
        unshown = f", though the selection split did not show a gain either (p = {choice.p_value:.2g})"
    return f" The checkpoint holds the cut model all the same{unshown}."


def _member(member: MemberRecord) -> str:
    """Say whether one of several tasks got better or worse on all of its own test examples."""
    scale, unit, digits = (100, " %", ".1f") if member.unit == "share" else (1, "", ".3f")
    was, now = (f"{score.value * scale:{digits}}" for score in (member.before, member.after))
    shown = "no difference shown" if member.p_value >= ALPHA else "better" if member.gained else "worse"
    return f"{member.name} {was} → {now}{unit} ({shown})"
