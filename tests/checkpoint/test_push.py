"""The card in the hub's own format, and uploads against a hub that runs here."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
from fixtures import data_components, data_report
from fixtures.folders import secateur
from huggingface_hub import ModelCard

from secateur import api
from secateur.checkpoint.card import model_card, unverified_card
from secateur.core.plan import Plan, parse_edits
from secateur.core.records.plan import ProvenanceRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.errors import OutputError
from secateur.hf.files import stated_license

# The card


def verdict_of(build, **more) -> VerdictRecord:
    found = build()[0]
    return VerdictRecord.model_validate(found | more | {"model": found["model"] | more.get("model", {})})


def card_of(tmp_path, verdict: VerdictRecord, *edits: str) -> ModelCard:
    (tmp_path / "README.md").write_text(model_card(verdict, Plan("f", parse_edits(edits))), encoding="utf-8")
    return ModelCard.load(tmp_path / "README.md")


@pytest.mark.parametrize("build", [data_report.facts, data_components.heads])
def test_the_hub_reads_the_results_that_the_verdict_holds(tmp_path, build):
    verdict = verdict_of(build, model={"name": "org/base", "hub": True, "license": "mit"})
    data = card_of(tmp_path, verdict, "b2.gate=1").data
    assert (data.base_model, data.license, data.library_name) == ("org/base", "mit", "transformers")
    assert {"secateur", "pruning", verdict.search.method} <= set(data.tags)
    by_metric = {
        result.metric_type: result for result in data.eval_results if result.dataset_name == verdict.task.name
    }
    assert by_metric[verdict.metric].metric_value == pytest.approx(verdict.after.value, abs=1e-6)
    assert f"{verdict.n} test examples" in by_metric[verdict.metric].metric_name
    for side in verdict.side_effects:
        if side.unit == "perplexity":
            found = [result for result in data.eval_results if result.metric_type == "perplexity"]
            assert found[0].metric_value == pytest.approx(side.after.value, abs=1e-6)
            assert "chunks of text" in found[0].metric_name


def test_an_unchanged_model_has_the_numbers_of_the_original(tmp_path):
    aside = {"holds": "original", "unproven": "unproven/plan.json", "edits": "b2.gate → rank 1"}
    verdict = verdict_of(data_report.facts, handed_over=aside)
    card = card_of(tmp_path, verdict)
    (first,) = [
        r
        for r in card.data.eval_results
        if r.metric_type == verdict.metric and r.dataset_name == verdict.task.name
    ]
    assert first.metric_value == pytest.approx(verdict.before.value, abs=1e-6)
    assert "set aside, in `unproven/plan.json`: layer 2, MLP gate projection → rank 1" in card.text


def test_a_model_of_no_known_origin_claims_none(tmp_path):
    data = card_of(tmp_path, verdict_of(data_report.facts), "b2.gate=1").data
    assert data.base_model is None
    assert data.license is None


def test_the_card_says_layers_units_and_numbers_of_examples(tmp_path):
    verdict = verdict_of(data_report.facts)
    text = card_of(tmp_path, verdict, "b2.gate=1", "b0.attn.h3=drop").text
    assert "- layer 2, MLP gate projection → rank 1 (`b2.gate → rank 1`)" in text
    assert "- layer 0, attention without head 3 (`b0.attn without head 3`)" in text
    assert f"on {verdict.n:,} test examples that nothing was chosen by" in text
    assert f"{100 * verdict.after.value:.1f} % [" in text
    for word in ("on select", "of select", "on probe", "witness"):
        assert word not in text


def test_the_card_of_apply_is_read_by_the_hub_too(tmp_path):
    plan = Plan("f", parse_edits(["b1.down=3"]))
    made = ProvenanceRecord(command={}, versions={}, check="logits")
    (tmp_path / "README.md").write_text(unverified_card("gpt2", True, plan, made, "mit"), encoding="utf-8")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.license, data.eval_results) == ("gpt2", "mit", None)


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("# no metadata", None),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("---\n- a\n---\n", None),
    ],
)
def test_a_license_is_read_from_the_card_of_the_original(tmp_path, card, license):
    assert stated_license(tmp_path) is None
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert stated_license(tmp_path) == license


# The hub


class Hub(ThreadingHTTPServer):
    """A hub of the few endpoints that an upload asks; it remembers what it was sent."""

    def __init__(self, refuse: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.refuse = refuse
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.paths: list[str] = []


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.paths.append(self.path)
        if self.server.refuse:
            self.answer({"error": "no right to write"}, self.server.refuse)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": "http://127.0.0.1/me/cut", "id": "me/cut"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": "http://127.0.0.1/me/cut/commit/1", "commitOid": "1"})
        else:
            self.answer({}, 404)

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.answer({"sha": "0", "id": "me/cut", "siblings": []})

    def answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, request):
    server = Hub(getattr(request, "param", 0))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_a-token-of-this-test")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def checkpoint(tmp_path):
    out = tmp_path / "out"
    (out / "unproven").mkdir(parents=True)
    for name in ("config.json", "README.md", "verdict.json", "unproven/plan.json", ".hidden"):
        (out / name).write_text(f"content of {name}", encoding="utf-8")
    return out


SENT = ["README.md", "config.json", "unproven/plan.json", "verdict.json"]


def test_every_file_is_sent_once_as_it_is(hub, checkpoint):
    pushed = api.push(checkpoint, "me/cut", private=True)
    assert pushed["url"] == "http://127.0.0.1/me/cut/commit/1"
    assert sorted(hub.files) == sorted(SENT)
    assert all(content == (checkpoint / name).read_bytes() for name, content in hub.files.items())
    assert [
        (made["name"], made["organization"], made.get("private") or made.get("visibility") == "private")
        for made in hub.created
    ] == [("cut", "me", True)]
    assert [(file["name"], file["bytes"]) for file in pushed["files"]] == [
        (name, (checkpoint / name).stat().st_size) for name in SENT
    ]


def test_a_dry_run_lists_the_files_and_asks_nobody(hub, checkpoint):
    result = secateur("push", checkpoint, "me/cut", "--dry-run")
    assert result.exit_code == 0, result.output
    assert [name for name in SENT if name in result.stdout] == SENT
    assert "would go to me/cut" in result.stdout
    assert hub.paths == []


def test_an_unchanged_model_is_said_to_be_one(hub, checkpoint, caplog):
    for edits, told in ((["b1.gate=1"], False), ([], True)):
        plan = Plan("f", parse_edits(edits)).to_json()
        (checkpoint / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        result = secateur("push", checkpoint, "me/cut", "--dry-run")
        assert (result.exit_code, "holds the unchanged model" in caplog.text) == (0, told)
    assert api.push_cut(checkpoint, "me/cut") is None
    assert "So nothing was pushed" in caplog.text
    assert hub.paths == []


@pytest.mark.parametrize("hub", [403], indirect=True)
def test_a_hub_that_refuses_is_told_in_a_line(hub, checkpoint):
    result = secateur("push", checkpoint, "me/cut")
    assert result.exit_code == 2
    assert result.stderr.startswith("secateur: cannot push to me/cut: ")
    assert len(result.stderr.splitlines()) == 1
    assert hub.files == {}


@pytest.mark.parametrize("name", ["cut", "me/cut/more", "me/c ut", "../x/y", ""])
def test_what_is_no_name_is_refused_at_once(hub, checkpoint, name):
    with pytest.raises(OutputError, match="Write USER/NAME"):
        api.push(checkpoint, name)
    assert hub.paths == []


def test_what_is_no_checkpoint_is_not_pushed(hub, tmp_path):
    with pytest.raises(OutputError, match=r"it has no config\.json"):
        api.push(tmp_path, "me/cut")


def test_prune_pushes_what_holds_the_cut(hub, tmp_path):
    words = (
        "prune",
        "builtin:facts",
        "--task",
        "builtin:facts",
        "--limit",
        "200",
        "--matrices",
        "gate",
        "--layers",
        "2:3",
    )
    result = secateur(*words, "-o", tmp_path / "out", "--push", "me/cut")
    assert result.exit_code == 0, result.output
    assert {"README.md", "model.safetensors", "verdict.json", "report.html"} <= set(hub.files)
    assert "pushed      http://127.0.0.1/me/cut/commit/1" in result.stdout


def test_prune_says_a_wrong_name_before_it_begins(tmp_path):
    result = secateur(
        "prune", "builtin:facts", "--task", "builtin:facts", "-o", tmp_path / "out", "--push", "cut"
    )
    assert (result.exit_code, "lacks the account" in result.stderr) == (2, True)
    assert not (tmp_path / "out.run").exists()
