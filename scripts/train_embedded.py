"""Trains the embedded models and writes them, with their tokenizers and logs, as Hugging Face folders.

    python scripts/train_embedded.py facts|recall|components|arith|all --seed 0 --out src/secateur/models

Plain PyTorch on one thread; the same seed gives the same bits on the same machine. Knows the worlds in
`secateur.tasks`, nothing else of secateur.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.tasks import arithmetic, components, facts, recall
from secateur.tasks.example import Example

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
IGNORED = -100  # label that the loss leaves out: padding
SIDE_SEED, SIDE_DOCUMENTS = 999, 150  # of text that no training seed draws


@dataclass(frozen=True)
class Recipe:
    """Shapes of model and training: `sequences` per step, `warmup` steps up, then a cosine to zero.

    `tied`: one matrix embeds the words and reads the answers.
    """

    name: str
    layers: int
    d_model: int
    heads: int
    d_ff: int
    steps: int
    sequences: int
    lr: float
    warmup: int
    weight_decay: float
    max_positions: int = 128
    tied: bool = False


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "facts",
            layers=3,
            d_model=96,
            heads=6,
            d_ff=256,
            steps=600,
            sequences=64,
            lr=3e-3,
            warmup=50,
            weight_decay=0.01,
        ),
        Recipe(
            "recall",
            layers=2,
            d_model=64,
            heads=4,
            d_ff=160,
            steps=1500,
            sequences=64,
            lr=3e-3,
            warmup=50,
            weight_decay=0.01,
        ),
        Recipe(
            "components",
            layers=6,
            d_model=64,
            heads=8,
            d_ff=216,
            steps=1300,
            sequences=64,
            lr=3e-3,
            warmup=50,
            weight_decay=0.01,
        ),
        Recipe(
            "arith",
            layers=2,
            d_model=128,
            heads=4,
            d_ff=384,
            steps=1800,
            sequences=32,
            lr=3e-3,
            warmup=50,
            weight_decay=0.01,
            tied=True,
        ),
    )
}
WORLDS = {"facts": facts, "recall": recall, "components": components, "arith": arithmetic}


def build_tokenizer(words: list[str], max_positions: int) -> PreTrainedTokenizerFast:
    """One token a word, <bos> first; decoding puts a space between words and none before a full stop."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    bos = SPECIAL["bos_token"]
    inner.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=max_positions,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_ff,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.max_positions,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=recipe.tied,
        use_cache=True,
    )
    return LlamaForCausalLM(config)


def batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, texts: Iterator[str]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels), each (sequences, tokens) int64, padded right; labels are IGNORED at padding."""
    while True:
        batch = tokenizer(list(islice(texts, recipe.sequences)), padding=True, return_tensors="pt")
        yield batch["input_ids"], batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)


def rate(recipe: Recipe, step: int) -> float:
    """Share of the learning rate at `step`: linear warm-up, then a cosine to zero at the last step."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup)))


def train(
    recipe: Recipe, seed: int, *, steps: int | None = None, texts: Iterator[str] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """A trained model, its tokenizer, every step's loss in nats per token; stops after `steps` if given.

    `texts`: other text in the world's words. Otherwise the world tells it.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(WORLDS[recipe.name].words(), recipe.max_positions)
    model = build_model(recipe, tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(recipe, step))
    losses: list[float] = []
    texts = texts or WORLDS[recipe.name].texts(seed)
    for ids, labels in islice(batches(recipe, tokenizer, texts), steps or recipe.steps):
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if len(losses) % 50 == 0:
            print(
                f"{recipe.name}: step {len(losses)} of {recipe.steps}, loss {losses[-1]:.4f} nats/token",
                flush=True,
            )
    return model.eval(), tokenizer, losses


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, log: dict) -> None:
    """Writes weights (safetensors, float32), configuration, tokenizer and log into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training_log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


def sides(name: str) -> dict[str, list[dict]]:
    """What a cut of this model might cost elsewhere, by file name: plain copying, facts, other draws of the text.

    A `text_` file is watched as text (perplexity), another one as questions.
    """
    if name == "facts":
        return {"text_trained_statements.jsonl": _documents(facts.texts(SIDE_SEED))}
    if name == "recall":
        return {"plain_copying.jsonl": _questions(recall.copy_examples(200))}
    if name == "arith":
        return {"sums.jsonl": _questions(arithmetic.sum_examples())}
    return {
        "facts.jsonl": _questions(facts.examples()),
        "plain_copying.jsonl": _questions(recall.copy_examples(200)),
        "text_trained_statements.jsonl": _documents(facts.texts(SIDE_SEED, noise=0)),
    }


def _questions(examples: list[Example]) -> list[dict]:
    return [{"id": e.id, "prompt": e.prompt, "answer": e.answer} for e in examples]


def _documents(source: Iterator[str]) -> list[dict]:
    return [{"text": text} for text in islice(source, SIDE_DOCUMENTS)]


def write_sides(folder: Path, name: str) -> None:
    (folder / "side").mkdir(parents=True, exist_ok=True)
    for file, rows in sides(name).items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "side" / file).write_text(lines, encoding="utf-8")


def run(name: str, seed: int, out: Path) -> None:
    recipe = RECIPES[name]
    start = time.perf_counter()
    model, tokenizer, losses = train(recipe, seed)
    log = {
        "recipe": asdict(recipe),
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "loss_nats_per_token": [round(loss, 4) for loss in losses],
    }
    save(out / name, model, tokenizer, log)
    write_sides(out / name, name)
    print(
        f"{name}: {log['parameters']:,} parameters, seed {seed}, {log['seconds']} s, written to {out / name}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=[*RECIPES, "all"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("src/secateur/models"))
    arguments = parser.parse_args()
    for name in RECIPES if arguments.model == "all" else [arguments.model]:
        run(name, arguments.seed, arguments.out)


if __name__ == "__main__":
    main()
