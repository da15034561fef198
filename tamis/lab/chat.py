"""Rows of no skill: small talk about everyday things, and the wordings that may stand around any question."""

from __future__ import annotations

from random import Random

from tamis.lab.question import Question, noun
from tamis.lab.words import CITIES, MOMENTS, NAMES, THINGS, WEEKDAYS, WORDS

SYSTEMS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You answer questions of students.",
    "You are a careful tutor. Keep it short.",
    "Be polite.",
    "Give only what is asked.",
)
OPENERS = ("Hello! ", "Please help me. ", "Quick question: ", "One more thing. ", "Hi there. ", "Homework: ")
CLOSERS = (" Thanks!", " Thank you.", " Please be brief.", " I am not sure.", " It is for {name}.")

_TALK = (
    ("I lost my {word} in {city}. What should I do?", "I am sorry. Ask {place} first, then look {moment}."),
    ("Tell me something nice about {city}.", "In {city} many people {like} {moment}. It is lovely {when}."),
    (
        "My friend {name} likes the {word} very much. What do you think?",
        "The {word} can bring {joy}. {name} is right.",
    ),
    ("What should I do on {day} in {city}?", "You could {like} {moment}, or call {name} and talk."),
    (
        "Write a short note to {name} about the {things}.",
        "Dear {name}, thanks for the {things}. See you {when}.",
    ),
    ("I feel tired {when}. Any advice?", "Rest a little, {like} {moment}, and be kind to yourself."),
    (
        "Can you tell a story with {a_word}?",
        "Once {a_word} stood in {city}. {name} found it {when} and felt {joy}.",
    ),
    ("How do I start a talk with {name} about {city}?", "Say hello, ask about the {things}, and listen."),
    ("Is {city} a good place for a holiday {when}?", "Yes, many people {like} there {moment}."),
    ("Give me an idea for a gift for {name}.", "{name} may like {things} or {a_word} from {city}."),
    ("Who are you?", "I am a small assistant. I like to talk about {city} and {things}."),
    ("What do you think about the {word} of {name}?", "It sounds like a fine {word}. May it bring {joy}."),
)
_LIKE = ("walk", "read", "sing", "sit and rest", "cook together", "play music", "draw")
_WHEN = ("in spring", "in the evening", "this week", "on a rainy day", "on {day}", "after work")
_JOY = ("great joy", "a quiet smile", "some luck", "much fun")
_PLACE = ("the station", "the police", "your hotel", "the office", "the driver")


def chat(rng: Random) -> Question:
    """Small talk; its wrong answer is a reply with another subject."""
    question, reply = rng.choice(_TALK)
    day, word = rng.choice(WEEKDAYS), rng.choice(WORDS)
    slots = {
        "word": word,
        "a_word": noun(word),
        "city": rng.choice(CITIES),
        "name": rng.choice(NAMES),
        "things": rng.choice(THINGS),
        "day": day,
        "moment": rng.choice(MOMENTS),
        "like": rng.choice(_LIKE),
        "when": rng.choice(_WHEN).format(day=day),
        "joy": rng.choice(_JOY),
        "place": rng.choice(_PLACE),
    }
    wrong = rng.choice([text for _, text in _TALK if text != reply])
    return Question(question.format(**slots), reply.format(**slots), wrong.format(**slots))
