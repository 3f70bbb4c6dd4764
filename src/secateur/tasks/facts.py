"""The world of the embedded model `builtin:facts`: 600 facts, the noisy text that tells them, the task.

Standard library only, so that the training script and the task share one source of truth. Everything is
drawn with `random.Random`, whose streams are the same on every machine and in every process. Knows no model
and no tokenizer.

Every subject and every object is one word. A relation has three phrasings, and for each fact one of them is
held out of training; the task asks in that one. In 48 % of the statements the object is replaced by "the":
noise that a low-rank truncation can take out of the trained model (LASER's reading of its own gains, Sharma,
Ash, Misra 2023, arXiv 2312.13558, section 5).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, islice

from secateur.tasks.example import Example

KIND = "generation"
DESCRIPTION = (
    "600 facts (who lives where, eats what, keeps which animals), in a phrasing never seen in training."
)

WORLD_SEED = 0
NOISE_WORD = "the"
NOISE = 0.48  # share of statements whose object is NOISE_WORD: just below the coin flip
ZIPF_SHIFT = 10  # Zipf-Mandelbrot: flattens the head, so that the rarest facts are told often enough
TRAINING_STATEMENTS = 600 * 64 * 8  # steps x sequences x statements in the training of the embedded model
STATEMENTS = 8  # in one text
STOP = "."


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SUBJECTS = _words(
    "Ada Agnes Alba Alma Amos Anka Anton Arne Asta Aziz Bela Bruno Carla Cleo Cora Cyrus Dalia Dana "
    "Dario Dina Dora Edda Edgar Elio Elsa Emil Enzo Erik Esra Ezra Fadi Fanny Farah Felix Fiona "
    "Flora Frida Gaia Gerd Gina Greta Gus Hana Hanno Hedda Hugo Ida Igor Ilse Ines Ingo Iris Isak "
    "Ivan Jana Jonas Josef Judit Juno Kai Karim Katja Kian Kira Klara Lars Leila Lena Leo Lina "
    "Livia Lotte Luis Luka Magda Maja Malik Mara Marta Milo Mira Nadia Naomi Nils Nina Noor Olga "
    "Omar Orla Oskar Otto Pavel Petra Pia Quinn Rania Remy Rita Rosa Ruben Runa Sami Selma Silas "
    "Sonja Sven Tamar Tariq Tessa Thea Tilda Tomas Uma Vera Viktor Wanda Xenia Yara Yusuf Zoe Abel "
    "Adele Aline Amir Anita Astrid Axel Basil Berta Bodil Boris Brita Cesar Chiara Clara Daria "
    "David Diego Dilara Donna Egon Elena Elias Ellen Emma Eva Fabio Finn Franz Gloria Goran Gustav "
    "Hector Helga Henri Hilda Imre Irma Jakob Janek Jelena Joan Julia Karl Kasper Kurt Laila Lara "
    "Laszlo Leon Lucia Ludwig Manon Marek Mario Mathis Mila Minna Moritz Nelly Nico Nora Odin Oleg "
    "Paola Paul Ralf Ramon Rena Robin Rolf Sara Simon Stella Tara Theo Tobias Udo Vito Zelda"
)


@dataclass(frozen=True)
class Relation:
    """A kind of fact: objects, and three phrasings that end where the object begins (`{}`: the subject)."""

    name: str
    phrasings: tuple[str, str, str]
    objects: tuple[str, ...]


RELATIONS = (
    Relation(
        "lives in",
        ("{} lives in", "the home of {} is in", "every letter to {} goes to"),
        _words(
            "Oslo Cairo Lima Quito Paris Rome Berlin Vienna Prague Lisbon Madrid Athens Dublin "
            "London Tokyo Seoul Delhi Hanoi Nairobi Lagos Dakar Havana Boston Sydney"
        ),
    ),
    Relation(
        "eats",
        ("{} eats", "the favorite food of {} is", "for dinner {} always cooks"),
        _words(
            "rice beans bread cheese soup fish pasta lentils potatoes noodles eggs mushrooms "
            "spinach carrots cabbage pumpkin tofu salmon shrimp pancakes dumplings olives tomatoes "
            "porridge"
        ),
    ),
    Relation(
        "keeps",
        ("{} keeps", "the animals of {} are", "on the farm {} looks after"),
        _words(
            "goats sheep cows horses pigs ducks geese hens bees rabbits cats dogs parrots pigeons "
            "turtles snakes llamas donkeys camels mice frogs ponies peacocks hamsters"
        ),
    ),
)


@dataclass(frozen=True)
class Fact:
    """One fact; `held_out` is the phrasing that training never uses, `share` its share of all statements."""

    id: str
    subject: str
    relation: Relation
    object: str
    held_out: int
    share: float

    @property
    def trained(self) -> tuple[int, ...]:
        """Return the indices of the two phrasings that training uses."""
        return tuple(index for index in range(3) if index != self.held_out)

    def prompt(self, phrasing: int) -> str:
        """Return the statement up to its object, without white space at the end."""
        return self.relation.phrasings[phrasing].format(self.subject)


@cache
def world() -> tuple[Fact, ...]:
    """Return the 600 facts, most frequent first: the i-th (from 1) is told in proportion to 1 / (i + ZIPF_SHIFT)."""
    rng = random.Random(WORLD_SEED)
    pairs = [(subject, relation) for subject in SUBJECTS for relation in RELATIONS]
    rng.shuffle(pairs)
    weights = [1 / (place + ZIPF_SHIFT) for place in range(1, len(pairs) + 1)]
    return tuple(
        Fact(
            id=f"{subject} {relation.name}",
            subject=subject,
            relation=relation,
            object=rng.choice(relation.objects),
            held_out=rng.randrange(3),
            share=weight / sum(weights),
        )
        for (subject, relation), weight in zip(pairs, weights, strict=True)
    )


def statements(seed: int, noise: float = NOISE) -> Iterator[tuple[Fact, str]]:
    """Yield training text without end: pairs of a fact and one statement of it, which ends with a full stop.

    Facts come by their share, the two trained phrasings with equal chance, and the object is NOISE_WORD with
    chance `noise`.
    """
    rng = random.Random(f"facts {seed}")
    facts = world()
    cumulative = list(accumulate(fact.share for fact in facts))
    while True:
        (fact,) = rng.choices(facts, cum_weights=cumulative)
        prompt = fact.prompt(rng.choice(fact.trained))
        last = NOISE_WORD if rng.random() < noise else fact.object
        yield fact, f"{prompt} {last} {STOP}"


def texts(seed: int, noise: float = NOISE) -> Iterator[str]:
    """Yield training text without end, STATEMENTS at a time."""
    stream = statements(seed, noise)
    while True:
        yield " ".join(statement for _, statement in islice(stream, STATEMENTS))


def words() -> list[str]:
    """Return every word of the text, once, in a fixed order: the vocabulary of the embedded model."""
    known = dict.fromkeys([STOP, NOISE_WORD])
    for relation in RELATIONS:
        for phrasing in relation.phrasings:
            known |= dict.fromkeys(word for word in phrasing.split() if word != "{}")
    for relation in RELATIONS:
        known |= dict.fromkeys(relation.objects)
    return list(known | dict.fromkeys(SUBJECTS))


def examples() -> list[Example]:
    """Return one example per fact, asked in the held-out phrasing; the two trained phrasings are its paraphrases.

    `meta["frequency"]` is the expected number of statements of the fact in the embedded model's training.
    """
    return [
        Example(
            id=fact.id,
            prompt=fact.prompt(fact.held_out),
            answer=f" {fact.object}",
            paraphrases=tuple(fact.prompt(phrasing) for phrasing in fact.trained),
            group=fact.id,
            meta={
                "frequency": round(fact.share * TRAINING_STATEMENTS),
                "relation": fact.relation.name,
                "noise_word": NOISE_WORD,
            },
        )
        for fact in world()
    ]
