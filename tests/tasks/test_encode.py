"""Examples as token ids, against hand-made tokenizers whose ids can be worked out on paper."""

from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from secateur.errors import TaskError, TooLong
from secateur.tasks.encode import added_ids, encode
from secateur.tasks.example import Example

NEWLINE = "{{ '\\n' }}"
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}" + NEWLINE + "{% endfor %}<|assistant|>" + NEWLINE
)
PIECES = ["<s>", "</s>", "a", "b", "c", "d", "Ġ", "Ċ", "Ġc", "Ġcd", "ab", "<|user|>", "<|assistant|>"]
ID = {piece: number for number, piece in enumerate(PIECES)}


def make(
    bos_added: bool = True, bos: bool = True, eos: bool = True, eos_added: bool = False
) -> PreTrainedTokenizerFast:
    merges = [("Ġ", "c"), ("Ġc", "d"), ("a", "b")]
    inner = Tokenizer(models.BPE(ID, merges, ignore_merges=False))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if bos_added or eos_added:
        form = f"{'<s> ' * bos_added}$A{' </s>' * eos_added}"
        special = [("<s>", 0), ("</s>", 1)]
        inner.post_processor = processors.TemplateProcessing(single=form, special_tokens=special)
    names = {"bos_token": "<s>"} if bos else {}
    names |= {"eos_token": "</s>"} if eos else {}
    special = ["<|user|>", "<|assistant|>"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=special, **names)


@pytest.fixture(scope="module")
def tokenizer():
    return make()


def ids(*pieces):
    return tuple(ID[piece] for piece in pieces)


QUESTION = Example("q", "ab", " cd", choices=(" c", " cd"))


def test_a_pair_per_choice_and_the_gold_one(tokenizer):
    encoded = encode(QUESTION, tokenizer, context=None)
    assert encoded.pairs == ((ids("<s>", "ab"), ids("Ġc")), (ids("<s>", "ab"), ids("Ġcd")))
    assert (encoded.gold, encoded.lengths) == (1, (1, 2))


def test_generation_has_the_gold_answer_alone(tokenizer):
    encoded = encode(replace(QUESTION, choices=None, answer=" c a"), tokenizer, context=None)
    assert encoded.pairs == ((ids("<s>", "ab"), ids("Ġc", "Ġ", "a")),)
    assert (encoded.gold, encoded.lengths) == (0, (1,))


def test_space_at_the_end_of_the_prompt_moves_to_the_answer(tokenizer):
    spaced = replace(QUESTION, prompt="ab ", answer="cd", choices=("c", "cd"))
    assert encode(spaced, tokenizer, context=None).pairs == encode(QUESTION, tokenizer, context=None).pairs


def test_a_merge_across_the_border_shortens_the_continuation(tokenizer):
    merged = Example("m", "a", "bd")  # "abd" is [ab, d]; the context alone is [a]
    encoded = encode(merged, tokenizer, context=None)
    assert encoded.pairs == ((ids("<s>", "a"), ids("d")),)
    assert encoded.joined
    assert not encode(QUESTION, tokenizer, context=None).joined


def test_bos_is_not_doubled_and_not_invented(tokenizer):
    begun = replace(QUESTION, prompt="<s>ab")
    assert encode(begun, tokenizer, context=None).pairs == encode(QUESTION, tokenizer, context=None).pairs
    assert encode(QUESTION, make(bos_added=False), context=None).pairs[0][0] == ids("ab")


@pytest.mark.parametrize("bos_added", [True, False])
@pytest.mark.parametrize("prompt", ["ab", "ab ", "<s>ab", "ab</s>", "", " "])
@pytest.mark.parametrize("chat", [True, False])
def test_a_tokenizer_that_ends_every_text_gives_the_ids_of_one_that_does_not(bos_added, prompt, chat):
    example = replace(QUESTION, prompt=prompt)
    usual, ending = make(bos_added), make(bos_added, eos_added=True)
    usual.chat_template = ending.chat_template = TEMPLATE
    found, expected = (encode(example, one, context=None, chat=chat) for one in (ending, usual))
    assert found == expected


@pytest.mark.parametrize("text", ["ab", "é ab", "<s> ab", "</s> ab", "<s></s> </s> a <s>"])
def test_what_is_put_around_a_text(text):
    assert added_ids(make(), text) == (ids("<s>"), ())
    assert added_ids(make(bos_added=False), text) == ((), ())
    assert added_ids(make(bos_added=False, eos_added=True), text) == ((), ids("</s>"))
    assert added_ids(make(eos_added=True), text) == (ids("<s>"), ids("</s>"))


def test_what_is_put_around_a_text_of_words_that_are_all_there_is():
    inner = Tokenizer(models.WordLevel({"<s>": 0, "12": 1}))  # no letter a, and no token for what is unknown
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    numerals = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")
    assert added_ids(numerals, "12") == ((0,), ())
    assert added_ids(numerals, " ") == ((), ())


class Inserting:
    """Stands for code of a checkpoint's own: it puts a special token inside the text."""

    def encode(self, text: str, add_special_tokens: bool = True, **_: object) -> list[int]:
        return [5, 9, 6] if add_special_tokens else [5, 6]


def test_a_tokenizer_that_adds_tokens_inside_a_text_is_refused():
    with pytest.raises(TaskError, match=r"makes \[5, 6\] of 'ab', and \[5, 9, 6\]"):
        added_ids(Inserting(), "ab c")


def test_an_empty_context_is_bos_or_eos():
    free = Example("f", "", " cd")
    assert encode(free, make(), context=None).pairs == ((ids("<s>"), ids("Ġcd")),)
    without_bos = make(bos_added=False, bos=False)
    assert encode(free, without_bos, context=None).pairs == ((ids("</s>"), ids("Ġcd")),)
    begun = replace(free, answer="<s> cd")
    assert encode(begun, make(), context=None).pairs == ((ids("<s>"), ids("Ġcd")),)
    with pytest.raises(TaskError, match="neither"):
        encode(free, make(bos_added=False, bos=False, eos=False), context=None)


def test_one_context_per_choice(tokenizer):
    example = Example("w", "a", " cd", choices=("b", "c"), contexts=("ab", "a c "), label=1, lengths=(3, 4))
    encoded = encode(example, tokenizer, context=None)
    assert encoded.pairs == ((ids("<s>", "ab"), ids("Ġcd")), (ids("<s>", "a", "Ġc"), ids("Ġ", "Ġcd")))
    assert (encoded.gold, encoded.lengths) == (1, (3, 4))


def test_a_chunk_of_text_scores_all_but_its_first_token(tokenizer):
    chunk = Example("t", "", "", tokens=(0, 3, 4, 5))
    encoded = encode(chunk, tokenizer, context=4)
    assert encoded.pairs == (((0,), (3, 4, 5)),)
    assert encoded.longest == 4
    with pytest.raises(TaskError, match=r"'t'.*1 more than .* context of 3.*--seqlen"):
        encode(chunk, tokenizer, context=3)


def test_too_long_by_how_much(tokenizer):
    long = replace(QUESTION, prompt="ab" * 10)  # <s> + 10 + 1 tokens
    assert encode(long, tokenizer, context=12).longest == 12
    with pytest.raises(TaskError, match=r"'q'.*12 tokens, 5 more than .* context of 7"):
        encode(long, tokenizer, context=7)


def test_an_answer_that_tokenizes_to_nothing(tokenizer):
    with pytest.raises(
        TaskError, match=r"'n'.*'b' and the end of its prompt 'a' are one token.*word's border"
    ):
        encode(Example("n", "a", "b"), tokenizer, context=None)  # "ab" is one token, as long as the context
    with pytest.raises(TaskError, match=r"'n'.*'é' tokenizes to nothing"):
        encode(Example("n", "a", " c", choices=(" c", "é")), tokenizer, context=None)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("field", ["prompt", "answer"])
def test_a_token_without_an_embedding_is_refused_by_name(field, chat, tokenizer):
    """The tokenizer knows `<|user|>` as 11 and `<|assistant|>` as 12."""
    chatty = make()
    chatty.chat_template = "{{ messages[0].content }}"
    example = replace(QUESTION, choices=None, **{field: "a<|user|>"})
    assert encode(example, chatty, context=None, vocab_size=12, chat=chat)
    with pytest.raises(TaskError, match=r"'q'.*token '<\|user\|>' \(id 11\).*vocab_size is 11"):
        encode(example, chatty, context=None, vocab_size=11, chat=chat)
    chatty.chat_template = TEMPLATE
    with pytest.raises(TaskError, match=r"'<\|assistant\|>' \(id 12\)"):
        encode(QUESTION, chatty, context=None, vocab_size=12, chat=True)
    with pytest.raises(TaskError, match=r"'t'.*'cd' \(id 5\)|'t'.*'d' \(id 5\)"):
        encode(Example("t", "", "", tokens=(0, 3, 5)), tokenizer, context=None, vocab_size=5)


def test_chat(tokenizer):
    with pytest.raises(TaskError, match=r"'q'.*no chat template"):
        encode(QUESTION, tokenizer, context=None, chat=True)
    chatty = make()
    chatty.chat_template = TEMPLATE
    encoded = encode(QUESTION, chatty, context=None, chat=True)
    head = ids("<s>", "<|user|>", "ab", "Ċ", "<|assistant|>", "Ċ")
    assert encoded.pairs == ((head, ids("c")), (head, ids("c", "d")))


# --------------------------------------------------------------------------------------------------------------- masks


@pytest.fixture(scope="module")
def with_mask():
    """As RoBERTa's: texts end with </s>, and the mask, number 13, takes the space before it."""
    tokenizer = make(eos_added=True)
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, special=True)})
    return tokenizer


@pytest.mark.parametrize(
    ("prompt", "answer", "row", "tokens", "places"),
    [
        ("ab <mask> c", "cd", ("<s>", "ab", 13, "Ġc", "</s>"), ("Ġcd",), (2,)),
        ("ab <mask> c", " cd", ("<s>", "ab", 13, "Ġc", "</s>"), ("Ġcd",), (2,)),
        ("<mask> c", "cd", ("<s>", 13, "Ġc", "</s>"), ("c", "d"), (1, 2)),
        ("ab [MASK]d", "c a", ("<s>", "ab", 13, "d", "</s>"), ("Ġc", "Ġ", "a"), (2, 3, 4)),
        ("ab <mask> c<mask>", "cda", ("<s>", "ab", 13, "Ġc", 13, "</s>"), ("Ġcd", "a"), (2, 4)),
        ("ab", " cd", ("<s>", "ab", 13, "</s>"), ("Ġcd",), (2,)),
        ("ab", "cd", ("<s>", "ab", 13, "</s>"), ("c", "d"), (2, 3)),
    ],
)
def test_a_mask_for_each_token_of_the_answer(with_mask, prompt, answer, row, tokens, places):
    encoded = encode(Example("m", prompt, answer), with_mask, context=None, masked=True)
    wanted = [13 if piece == 13 else ID[piece] for piece in row]
    if prompt.count("mask") + prompt.count("MASK") < 2:
        wanted[places[0] : places[0] + 1] = [13] * len(places)
    assert encoded.pairs == ((tuple(wanted), ids(*tokens)),)
    assert encoded.masks == (places,)
    assert (encoded.read(0), tuple(encoded.places(0)), encoded.longest) == (
        tuple(wanted),
        places,
        len(wanted),
    )


def test_choices_have_rows_of_their_own_and_gold_alone_keeps_its_masks(with_mask):
    question = Example("m", "ab <mask>", "c a", choices=("cd", "c a"))
    encoded = encode(question, with_mask, context=None, masked=True)
    assert [len(row) for row, _ in encoded.pairs] == [4, 6]
    assert (encoded.gold, encoded.lengths, encoded.masks) == (1, (2, 3), ((2,), (2, 3, 4)))
    assert encoded.gold_alone.masks == ((2, 3, 4),)


def test_text_has_a_mask_for_each_of_its_tokens_in_turn(with_mask):
    """Between the special tokens that stand around every text; the one before it is part of a chunk."""
    row = with_mask.encode("ab c d")
    text = row[1:-1]
    encoded = encode(Example("m", "", "", tokens=tuple(row[:-1])), with_mask, context=len(row), masked=True)
    assert encoded.pairs == ((tuple(row), tuple(text)),)
    assert encoded.masks == (tuple(range(1, 1 + len(text))),)
    assert encoded.mask == with_mask.mask_token_id
    assert encoded.num_run == len(row) * len(text)
    with pytest.raises(TooLong, match="--seqlen"):
        encode(Example("m", "", "", tokens=tuple(row[:-1])), with_mask, context=len(row) - 1, masked=True)


@pytest.mark.parametrize(
    ("example", "chat", "words"),
    [
        (
            Example("m", "a <mask> b <mask>", "cd"),
            False,
            r"'m': its prompt has 2 masks, and the answer 'cd' is 1 tok",
        ),
        (QUESTION, True, "--chat"),
    ],
)
def test_what_has_no_masks_is_refused(with_mask, example, chat, words):
    with pytest.raises(TaskError, match=words):
        encode(example, with_mask, context=None, chat=chat, masked=True)
    with pytest.raises(TaskError, match="no mask token"):
        encode(example, make(), context=None, masked=True)
    with pytest.raises(TooLong, match="2 more than the model's context of 3"):
        encode(Example("m", "ab <mask> c", "cd"), with_mask, context=3, masked=True)
