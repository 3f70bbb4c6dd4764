"""Addresses of what can be read: what is parsed is printed again, and every place that is read has one."""

from __future__ import annotations

import pytest
from fixtures.encoders import ENCODERS
from fixtures.zoo import ZOO

from secateur.core.place import ReadableSite
from secateur.core.site import Site
from secateur.errors import UnknownName
from secateur.hf.readable import readable_from, readable_of
from secateur.probes.hooks import FINER, hook_points

PLACES = {
    "b3": ReadableSite(3),
    "b3.attn": ReadableSite(3, "attn"),
    "b12.attn.h7": ReadableSite(12, "attn", 7),
    "b0.attn.h0": ReadableSite(0, "attn", 0),
    "b3.gate": ReadableSite(3, "gate"),
    "enc.b3": ReadableSite(3, stack="enc."),
    "enc.b3.q": ReadableSite(3, "q", stack="enc."),
    "dec.b3.cross": ReadableSite(3, "cross", stack="dec."),
    "dec.b3.cross.h7": ReadableSite(3, "cross", 7, "dec."),
    "dec.b3.cross.q": ReadableSite(3, "cross.q", stack="dec."),
}


@pytest.mark.parametrize(("text", "place"), PLACES.items())
def test_what_is_parsed_is_printed(text, place):
    assert ReadableSite.parse(text) == place
    assert str(place) == text
    assert place.is_matrix == text.endswith((".gate", ".q"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "b",
        "b-1",
        "b3.",
        "b3.h7",
        "b3.mlp.h7",
        "b3.q.h7",
        "b3.attn.7",
        "cross.q",
        "x.b3",
        "dec.3",
        "b3 ",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UnknownName, match="no place in a model"):
        ReadableSite.parse(text)


@pytest.mark.parametrize("name", sorted([*ZOO, *ENCODERS]))
def test_every_place_that_is_read_has_an_address_of_its_own(name, as_loaded):
    readable = (
        readable_from(ENCODERS[name](), None) if name in ENCODERS else readable_of(as_loaded(ZOO[name]()))
    )
    places = [tap for tap in hook_points(readable, finer=FINER) if tap.kind != "last"]
    sites = [unit.site for tap in places for unit in tap.units] + [t.site for t in places if not t.units]
    assert len(set(sites)) == len(sites) > 20
    assert [str(ReadableSite.parse(site)) for site in sites] == sites
    if readable.kind == "decoder":
        assert [str(Site.parse(site)) for site in sites] == sites


def test_a_site_of_an_encoder_decoder_is_spelled_as_what_can_be_read():
    for text in ("dec.b3.cross.h7", "enc.b3", "dec.b3.cross.q", "enc.b0.mlp", "dec.b12.attn.h0"):
        assert str(Site.parse(text)) == str(ReadableSite.parse(text)) == text
    sites = ["b2", "enc.b0.q", "enc.b1", "dec.b0.cross", "dec.b0.cross.q", "dec.b1.mlp.n3"]
    assert list(map(str, sorted(map(Site.parse, reversed(sites))))) == sites
    assert Site.parse("dec.b3.cross.q").wholes == (Site.parse("dec.b3.cross"), Site.parse("dec.b3"))
    for text in ("enc.b3.cross", "b3.cross.h1", "enc.b3.cross.q"):
        with pytest.raises(UnknownName, match="only a decoder beside an encoder has cross-attention"):
            Site.parse(text)
    with pytest.raises(UnknownName, match=r"In an encoder-decoder write enc\.b3\.attn\.h7"):
        Site.parse("dec.b3.attention")
