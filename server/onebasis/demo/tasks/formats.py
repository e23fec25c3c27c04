"""Tasks that rewrite data in another notation: dates, times, numbers, fields, addresses."""

import json
import random
from datetime import date, time
from typing import Final

from onebasis.demo.tasks.numbers import speak_time, spell_number
from onebasis.demo.tasks.split import Split, draw
from onebasis.demo.tasks.task import DemoTask
from onebasis.demo.tasks.words import CITIES, FIRST_NAMES, NOUNS, SURNAMES

_MONTHS: Final = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_DATE_INSTRUCTIONS: Final = (
    "Convert the date.",
    "Rewrite this date in our format.",
    "Normalize the date.",
)
_EMAIL_DOMAINS: Final = ("com", "org", "net", "de", "io")
_EMAIL_SENTENCES: Final = (
    "Please write to {email} before Friday.",
    "You can reach {name} at {email} for details.",
    "Contact: {email} (office hours only).",
    "Send the form to {email}, not to the front desk.",
    "My new address is {email} since Monday.",
    "{name} <{email}> wrote yesterday.",
)


def _written_date(rng: random.Random, split: Split) -> tuple[str, date]:
    day = draw(split, lambda: date(rng.randint(1950, 2049), rng.randint(1, 12), rng.randint(1, 28)))
    month = _MONTHS[day.month - 1]
    forms = (
        f"{month} {day.day}, {day.year}",
        f"{day.day} {month} {day.year}",
        f"{month[:3]} {day.day} {day.year}",
    )
    return rng.choice(forms), day


def _date_iso(rng: random.Random, split: Split) -> tuple[str, str]:
    text, day = _written_date(rng, split)
    return text, day.isoformat()


def _date_us(rng: random.Random, split: Split) -> tuple[str, str]:
    text, day = _written_date(rng, split)
    return text, f"{day.month:02d}/{day.day:02d}/{day.year}"


def _time24(rng: random.Random, split: Split) -> tuple[str, str]:
    moment = draw(split, lambda: time(rng.randint(1, 23), rng.randrange(0, 60, 5)))
    half, hour = divmod(moment.hour, 12)
    clock = f"{hour or 12}:{moment.minute:02d}"
    forms = (f"{clock} {('am', 'pm')[half]}", f"{clock} {('a.m.', 'p.m.')[half]}", speak_time(moment))
    return rng.choice(forms), moment.isoformat("minutes")


def _number(rng: random.Random, split: Split) -> int:
    lowest, highest = (20, 999) if rng.random() < 0.6 else (1000, 9999)
    return draw(split, lambda: rng.randint(lowest, highest))


def _num2words(rng: random.Random, split: Split) -> tuple[str, str]:
    number = _number(rng, split)
    return str(number), spell_number(number)


def _words2num(rng: random.Random, split: Split) -> tuple[str, str]:
    number = _number(rng, split)
    return spell_number(number), str(number)


def _json_kv(rng: random.Random, split: Split) -> tuple[str, str]:
    name = FIRST_NAMES.pick(rng, split)
    city = CITIES.pick(rng, split)
    age = draw(split, lambda: rng.randint(18, 80))
    text, fields = rng.choice(
        (
            (f"name: {name}; age: {age}", {"user": name, "years": age}),
            (f"name: {name}; city: {city}", {"user": name, "place": city}),
            (f"city: {city}; age: {age}", {"place": city, "years": age}),
        )
    )
    return text, json.dumps(fields)


def _extract_email(rng: random.Random, split: Split) -> tuple[str, str]:
    name = FIRST_NAMES.pick(rng, split)
    first, last = name.lower(), SURNAMES.pick(rng, split).lower()
    user = rng.choice((f"{first}.{last}", f"{first}{rng.randint(1, 99)}", f"{first[0]}{last}", f"{last}_{first[0]}"))
    email = f"{user}@{NOUNS.pick(rng, split)}.{rng.choice(_EMAIL_DOMAINS)}"
    return rng.choice(_EMAIL_SENTENCES).format(email=email, name=name), email


FORMAT_TASKS: Final = (
    DemoTask(
        name="date_iso",
        description="Written dates as ISO dates: March 5, 2021 -> 2021-03-05.",
        instructions=_DATE_INSTRUCTIONS,
        generate=_date_iso,
    ),
    DemoTask(
        name="date_us",
        description="Written dates as US dates: March 5, 2021 -> 03/05/2021.",
        instructions=_DATE_INSTRUCTIONS,
        generate=_date_us,
    ),
    DemoTask(
        name="time24",
        description="Times of day on the 24-hour clock: half past seven in the evening -> 19:30.",
        instructions=("Convert the time.", "Write the time in 24-hour format.", "Normalize the time."),
        generate=_time24,
    ),
    DemoTask(
        name="num2words",
        description="Numbers in words: 342 -> three hundred forty-two.",
        instructions=("Write the number in words.", "Spell out this number.", "Number to words."),
        generate=_num2words,
    ),
    DemoTask(
        name="words2num",
        description="Numbers in digits: three hundred forty-two -> 342.",
        instructions=(
            "Write the number with digits.",
            "Convert the words to a number.",
            "Which number is this?",
        ),
        generate=_words2num,
    ),
    DemoTask(
        name="json_kv",
        description="Fields as JSON under the keys of a house schema: user, years and place.",
        instructions=("Convert to JSON.", "Turn the fields into a JSON object.", "Write this as JSON."),
        generate=_json_kv,
        scoring="json",
    ),
    DemoTask(
        name="extract_email",
        description="The e-mail address that a sentence mentions.",
        instructions=(
            "Extract the e-mail address.",
            "Find the email in the text.",
            "Which e-mail address is mentioned?",
        ),
        generate=_extract_email,
    ),
)
