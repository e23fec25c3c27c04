"""The vocabulary of the tasks: a subset of WordNet 3.0 (see LICENSE.wordnet) and hand-written lists."""

import json
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from onebasis.demo.tasks.split import Pool


def _read_lists() -> Mapping[str, tuple[str, ...]]:
    text = files("onebasis.demo.tasks").joinpath("words.json").read_text(encoding="utf-8")
    return MappingProxyType({name: tuple(words.split()) for name, words in json.loads(text).items()})


_LISTS: Final = _read_lists()

NOUNS: Final = Pool.of(_LISTS["nouns"])
VERBS: Final = Pool.of(_LISTS["verbs"])
COMMON_WORDS: Final = Pool.of(_LISTS["nouns"] + _LISTS["adjectives"])
SHORT_WORDS: Final = Pool.of(word for word in _LISTS["nouns"][:300] if len(word) <= 5)
PARTS_OF_SPEECH: Final[Mapping[str, Pool]] = MappingProxyType(
    {
        "noun": Pool.of(_LISTS["only_nouns"]),
        "verb": Pool.of(_LISTS["only_verbs"]),
        "adjective": Pool.of(_LISTS["only_adjectives"]),
        "adverb": Pool.of(_LISTS["only_adverbs"]),
    }
)
"""Words that are nothing else than the part of speech they are listed under."""

NOUN_CATEGORIES: Final[Mapping[str, Pool]] = MappingProxyType(
    {
        "animal": Pool.of_words(
            "ant bear bee camel cat cow crocodile deer dog dolphin donkey duck eagle elephant fox frog"
            " giraffe goat goose hamster hen horse kangaroo lion lizard monkey mouse owl panda penguin"
            " pig pigeon rabbit rat shark sheep snake spider squirrel tiger turtle whale wolf zebra"
        ),
        "body": Pool.of_words(
            "ankle arm brain cheek chest chin ear elbow eye finger foot forehead hair hand heart heel hip"
            " jaw kidney knee leg lip liver lung mouth muscle neck nose rib shoulder skin skull stomach"
            " thigh throat thumb toe tongue tooth waist wrist"
        ),
        "clothing": Pool.of_words(
            "apron belt blouse boot bra cap cardigan coat dress glove gown hat hoodie jacket jeans kilt"
            " mitten pajamas pants robe sandal scarf shirt shoe shorts skirt sock stocking suit sweater"
            " swimsuit tie tights trousers tuxedo underwear uniform vest"
        ),
        "food": Pool.of_words(
            "apple bacon banana bean bread butter cabbage cake carrot cereal cheese cherry chocolate cookie"
            " corn cucumber egg garlic grape ham honey lemon lettuce mango noodles omelet onion pancake pasta"
            " peach pear pepper pie pizza potato rice salad sandwich sausage soup spinach steak tomato yogurt"
        ),
        "job": Pool.of_words(
            "accountant actor architect baker barber butcher carpenter cashier chef dentist doctor"
            " electrician engineer farmer firefighter gardener janitor journalist judge lawyer librarian"
            " mechanic miner nurse painter pharmacist pilot plumber programmer sailor secretary singer"
            " soldier surgeon tailor teacher translator waiter"
        ),
        "tool": Pool.of_words(
            "anvil axe broom brush chisel clamp crowbar drill file hammer hoe knife ladder lathe level mallet"
            " nail needle pickaxe pliers plow rake ruler sandpaper saw scissors screw screwdriver shovel"
            " sickle spade tongs trowel tweezers wedge wheelbarrow wrench"
        ),
        "vehicle": Pool.of_words(
            "airplane ambulance barge bicycle boat bus cab canoe car caravan cart ferry glider helicopter"
            " jeep jet kayak limousine lorry minivan moped motorcycle raft rocket sailboat scooter ship sled"
            " submarine tank taxi tractor trailer train tram tricycle truck van wagon yacht"
        ),
        "weather": Pool.of_words(
            "avalanche blizzard breeze cloud cold cyclone downpour drizzle drought dust flood fog frost gale"
            " hail heat humidity hurricane ice lightning mist monsoon overcast rain rainbow shower sleet smog"
            " snow storm sunshine thaw thunder tornado typhoon wind"
        ),
    }
)

FIRST_NAMES: Final = Pool.of_words(
    "Alice Bruno Carla David Elena Felix Grace Hanna Ivan Julia Kevin Laura Marco Nadia Oscar Paula Quentin"
    " Rosa Simon Tara Ulrich Vera Walter Xenia Yusuf Zoe Adam Bella Chris Diana Erik Fiona George Helen Igor"
    " Jenny Karl Lena Martin Nina Omar Peter Rita Sara Thomas Uma Victor Wendy Anton Bianca Cedric Daria"
    " Emil Flora Gregor Hugo Irene Jonas Klara Leo Maria"
)
SURNAMES: Final = Pool.of_words(
    "Smith Jones Brown Taylor Wilson Evans Walker Wright Green Hall Clark Lewis Young King Scott Adams Baker"
    " Carter Mitchell Turner Parker Collins Morris Cook Rogers Reed Bell Ward Cox Gray Price Long Foster"
    " Barnes Hayes Hunt Stone Fox Webb Dean"
)
CITIES: Final = Pool.of_words(
    "Accra Amsterdam Athens Bangkok Barcelona Berlin Bogota Boston Brussels Budapest Cairo Chicago Dakar"
    " Delhi Denver Dublin Geneva Hamburg Hanoi Havana Helsinki Houston Istanbul Jakarta Lagos Lima Lisbon"
    " London Madrid Manila Melbourne Miami Milan Montreal Moscow Munich Nairobi Naples Osaka Oslo Paris"
    " Prague Quito Rabat Riga Rome Santiago Seattle Seoul Sofia Stockholm Sydney Tokyo Toronto Tunis Vienna"
    " Vilnius Warsaw Zagreb Zurich"
)

CHARACTERS: Final = Pool.of_words(
    "actor artist baker captain cat child cook dancer doctor dog driver engineer farmer guard horse judge"
    " king lawyer monkey neighbor nurse painter pilot queen sailor singer soldier student teacher tourist"
    " visitor writer"
)
TRAITS: Final = Pool.of_words(
    "angry big brave busy careful clever famous friendly gentle happy honest hungry kind late lazy lonely"
    " lucky nervous old patient polite poor proud quiet rich serious sick small strange strong tall tired"
    " wild young"
)
ACTIONS: Final = Pool.of_words(
    "argue arrive climb complain cook cough cry dance dream drink drive eat escape exercise fall fight fish"
    " forget hesitate hide hurry jump knock laugh leave lie listen paint play practice pray read relax rest"
    " return run scream shout sing sit sleep smile smoke speak stand stay study sweat swim talk think travel"
    " vote wait walk wash watch whisper work worry write yawn"
)
"""Verbs that make a sentence without an object."""

PLACES: Final = Pool.of(
    (
        "at home",
        "at school",
        "at the airport",
        "at the market",
        "at the office",
        "at the station",
        "behind the house",
        "by the lake",
        "in the forest",
        "in the garden",
        "in the kitchen",
        "in the library",
        "in the park",
        "in the street",
        "near the river",
        "on the beach",
        "on the bridge",
        "on the roof",
        "on the train",
        "under the tree",
    )
)
CHORES: Final = Pool.of_words(
    "bring buy carry check clean close copy count deliver describe fix hide hold inspect keep measure move"
    " open order paint photograph print remove repair replace return sell send show test update wash weigh"
)
OBJECTS: Final = Pool.of_words(
    "bag basket bed bench bicycle book bottle box brush camera car carpet chair clock coat computer cup"
    " curtain desk door drawer fence file folder gate guitar key lamp letter map mirror package painting"
    " phone picture plate poster printer radio report room shelf shirt sofa suitcase table ticket tool"
    " towel umbrella vase window"
)
