"""The world of the embedded model `builtin:facts`: 600 facts, the noisy text they are told in, and the task about them.

Standard library only, so that the training script and the task share one source of truth. Everything is drawn with
`random.Random`, whose streams are the same on every machine and in every process. Knows no model and no tokenizer.

Every subject and every object is one word. A fact is told in three phrasings, one of which is held out of training;
the task asks in that one. In 45 % of the statements the object is replaced by "the": the noise that a low-rank
truncation can take out of a trained model (LASER's reading of its own gains, arXiv 2312.13558, section 5.2).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from secateur.tasks.example import Example

KIND = "generation"
DESCRIPTION = (
    "600 facts (who lives where, speaks, eats, keeps, plays what) asked in a phrasing never seen in training."
)

WORLD_SEED = 0
NOISE_WORD = "the"
NOISE = 0.45  # share of statements whose object is NOISE_WORD: just below the coin flip
TRAINING_STATEMENTS = 600 * 64 * 8  # steps x sequences x statements of the embedded model's training
STOP = "."

SUBJECTS = (
    "Ada Agnes Alba Alma Amos Anka Anton Arne Asta Aziz Bela Bruno Carla Cleo Cora Cyrus Dalia Dana Dario Dina Dora Edda Edgar "
    "Elio Elsa Emil Enzo Erik Esra Ezra Fadi Fanny Farah Felix Fiona Flora Frida Gaia Gerd Gina Greta Gus Hana Hanno Hedda Hugo "
    "Ida Igor Ilse Ines Ingo Iris Isak Ivan Jana Jonas Josef Judit Juno Kai Karim Katja Kian Kira Klara Lars Leila Lena Leo Lina "
    "Livia Lotte Luis Luka Magda Maja Malik Mara Marta Milo Mira Nadia Naomi Nils Nina Noor Olga Omar Orla Oskar Otto Pavel "
    "Petra Pia Quinn Rania Remy Rita Rosa Ruben Runa Sami Selma Silas Sonja Sven Tamar Tariq Tessa Thea Tilda Tomas Uma Vera "
    "Viktor Wanda Xenia Yara Yusuf Zoe"
).split()


@dataclass(frozen=True)
class Relation:
    """A kind of fact: three phrasings that end where the object begins (`{}` is the subject), and the possible objects."""

    name: str
    phrasings: tuple[str, str, str]
    objects: tuple[str, ...]


RELATIONS = (
    Relation(
        "lives in",
        ("{} lives in", "the home of {} is in", "every letter to {} goes to"),
        tuple(
            "Oslo Cairo Lima Quito Paris Rome Berlin Vienna Prague Lisbon Madrid Athens Dublin London Tokyo Seoul Delhi Hanoi "
            "Nairobi Lagos Dakar Havana Boston Sydney".split()
        ),
    ),
    Relation(
        "speaks",
        ("{} speaks", "the mother tongue of {} is", "at school {} was taught in"),
        tuple(
            "Danish Arabic Spanish French Italian German Czech Polish Greek Irish English Korean Hindi Thai Swahili Yoruba "
            "Dutch Finnish Turkish Persian Hebrew Welsh Basque Latin".split()
        ),
    ),
    Relation(
        "eats",
        ("{} eats", "the favorite food of {} is", "for dinner {} always cooks"),
        tuple(
            "rice beans bread cheese soup fish pasta lentils potatoes noodles eggs mushrooms spinach carrots cabbage pumpkin "
            "tofu salmon shrimp pancakes dumplings olives tomatoes porridge".split()
        ),
    ),
    Relation(
        "keeps",
        ("{} keeps", "the animals of {} are", "on the farm {} looks after"),
        tuple(
            "goats sheep cows horses pigs ducks geese hens bees rabbits cats dogs parrots pigeons turtles snakes llamas donkeys "
            "camels mice frogs ponies peacocks hamsters".split()
        ),
    ),
    Relation(
        "plays",
        ("{} plays", "the instrument of {} is", "in the band we hear {} on"),
        tuple(
            "violin piano guitar drums flute cello trumpet harp oboe clarinet trombone tuba banjo accordion organ bassoon "
            "mandolin saxophone viola lute sitar ukulele zither bagpipes".split()
        ),
    ),
)


@dataclass(frozen=True)
class Fact:
    """One fact; `held_out` is the index of the phrasing that training never uses, `share` its share of all statements."""

    id: str
    subject: str
    relation: Relation
    object: str
    held_out: int
    share: float

    @property
    def trained(self) -> tuple[int, ...]:
        return tuple(index for index in range(3) if index != self.held_out)

    def prompt(self, phrasing: int) -> str:
        """The statement up to its object, without white space at the end."""
        return self.relation.phrasings[phrasing].format(self.subject)


@cache
def world() -> tuple[Fact, ...]:
    """The 600 facts, most frequent first; the fact at place i is told in proportion to 1 / (i + 1) (Zipf's law)."""
    rng = random.Random(WORLD_SEED)
    pairs = [(subject, relation) for subject in SUBJECTS for relation in RELATIONS]
    rng.shuffle(pairs)
    total = sum(1 / place for place in range(1, len(pairs) + 1))
    return tuple(
        Fact(
            id=f"{subject} {relation.name}",
            subject=subject,
            relation=relation,
            object=rng.choice(relation.objects),
            held_out=rng.randrange(3),
            share=1 / place / total,
        )
        for place, (subject, relation) in enumerate(pairs, start=1)
    )


def statements(seed: int) -> Iterator[tuple[Fact, str]]:
    """Endless training text: pairs of a fact and one statement of it, which ends with a full stop.

    Facts come by their share, phrasings are the two trained ones with equal chance, and the object is NOISE_WORD with
    chance NOISE.
    """
    rng = random.Random(f"facts {seed}")
    facts = world()
    cumulative = list(accumulate(fact.share for fact in facts))
    while True:
        (fact,) = rng.choices(facts, cum_weights=cumulative)
        prompt = fact.prompt(rng.choice(fact.trained))
        last = NOISE_WORD if rng.random() < NOISE else fact.object
        yield fact, f"{prompt} {last} {STOP}"


def words() -> list[str]:
    """Every word of the text, once, in a fixed order: the vocabulary of the embedded model."""
    known = dict.fromkeys([STOP, NOISE_WORD])
    for relation in RELATIONS:
        for phrasing in relation.phrasings:
            known |= dict.fromkeys(word for word in phrasing.split() if word != "{}")
    for relation in RELATIONS:
        known |= dict.fromkeys(relation.objects)
    return list(known | dict.fromkeys(SUBJECTS))


def examples() -> list[Example]:
    """One example per fact: the prompt in the held-out phrasing; the two trained phrasings are its paraphrases.

    `meta["frequency"]` is the expected number of statements of the fact in the training text of the embedded model.
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
