"""Hand-written customer messages and reviews, with the slots that the label tasks fill."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from onebasis.demo.tasks.split import Pool

INTENTS: Final[Mapping[str, Pool]] = MappingProxyType(
    {
        "refund": Pool.of(
            (
                "I want my money back for order {order}",
                "please refund the {product} I bought",
                "how do I get a refund for the {product}?",
                "I was charged twice, return my money",
                "can I get reimbursed for the {product}?",
                "the {product} was never used, give me my money back",
                "return the payment for order {order}",
                "I would like a refund for the {product}",
                "when will I get the refund for order {order}?",
                "pay me back the price of the {product}",
                "you still owe me the money for the {product}",
                "is a refund of order {order} possible?",
            )
        ),
        "cancel": Pool.of(
            (
                "cancel my order {order}",
                "please stop my subscription, number {order}",
                "I do not want the {product} anymore, cancel it",
                "how can I cancel the order of the {product}?",
                "end my membership {order} today",
                "please call off the purchase of the {product}",
                "terminate my contract {order}",
                "I need to cancel the {product}",
                "can order {order} still be cancelled?",
                "I changed my mind, cancel the {product}",
                "please withdraw my order of the {product}",
                "I ordered the {product} by mistake, cancel it",
            )
        ),
        "shipping": Pool.of(
            (
                "where is my package {order}?",
                "when will the {product} arrive?",
                "track order {order}",
                "my parcel with the {product} is late",
                "has the {product} been shipped yet?",
                "what is the delivery status of order {order}?",
                "how long does the delivery of the {product} take?",
                "the courier did not bring the {product}",
                "I am still waiting for the delivery of order {order}",
                "the {product} has not been delivered",
                "can you track the parcel {order}?",
                "which day will the {product} be delivered?",
            )
        ),
        "login": Pool.of(
            (
                "I forgot the password of account {order}",
                "I cannot sign in to account {order}",
                "my account {order} is locked",
                "how do I reset my password?",
                "the login page does not accept my code {order}",
                "I am unable to log in to order the {product}",
                "I cannot access account {order}",
                "the site says wrong password for user {order}",
                "please unlock my account {order}",
                "signing in fails with error {order}",
                "my password for the {product} shop does not work",
                "I need a new password for user {order}",
            )
        ),
        "damage": Pool.of(
            (
                "the {product} is broken",
                "my {product} stopped working",
                "the {product} arrived damaged",
                "there is a crack in the {product}",
                "the {product} does not turn on",
                "my new {product} is defective",
                "part of the {product} is missing",
                "the {product} makes a strange noise",
                "the {product} from order {order} is scratched",
                "a piece of the {product} fell off",
                "the {product} in order {order} was smashed",
                "the {product} broke after one day",
            )
        ),
        "hours": Pool.of(
            (
                "when does the {product} shop open?",
                "is the {product} store open on Sunday?",
                "what are the opening hours of the {product} shop?",
                "until what time is the {product} shop open?",
                "is the {product} store open today?",
                "at what time does the {product} store close?",
                "do you sell the {product} on holidays too?",
                "when does the {product} department close?",
                "is the {product} shop open in the evening?",
                "what time does the {product} department open tomorrow?",
                "are you open this Saturday?",
                "which days is the {product} department open?",
            )
        ),
    }
)
GREETINGS: Final = (
    "",
    "Hello, ",
    "Hi there, ",
    "Good morning, ",
    "Sorry, but ",
    "Quick question: ",
    "Dear team, ",
    "Hey, ",
)
REGARDS: Final = ("", " Thanks!", " Please help.", " Thank you.", " Best regards", " It is urgent.")
PRODUCTS: Final = Pool.of_words(
    "bag bike camera chair clock drill fridge guitar jacket kettle lamp laptop mirror phone printer radio"
    " shirt sofa table tent toaster watch"
)

TONES: Final[Mapping[str, Pool]] = MappingProxyType(
    {
        "positive": Pool.of_words(
            "amazing beautiful brilliant charming delightful excellent fantastic great impressive lovely"
            " outstanding perfect pleasant remarkable superb terrific wonderful"
        ),
        "negative": Pool.of_words(
            "annoying awful boring broken dirty disappointing dreadful horrible lousy miserable mediocre"
            " poor rude terrible unpleasant useless worthless"
        ),
    }
)
REVIEW_SUBJECTS: Final = Pool.of_words(
    "app book breakfast concert dinner film flight game guide hotel meal movie museum phone play restaurant"
    " room service show song soup staff teacher tour trip"
)
REVIEW_TEMPLATES: Final = Pool.of(
    (
        "The {subject} was {adjective}.",
        "What a {subject}, simply {adjective}!",
        "I found the {subject} {adjective}.",
        "Last week we tried the {subject}: {adjective}.",
        "Honestly, the {subject} is {adjective}.",
        "My {subject} turned out to be {adjective}.",
        "Everyone said the {subject} was {adjective}.",
        "We thought the {subject} was {adjective}.",
        "In my opinion the {subject} is {adjective}.",
        "Overall, a truly {adjective} {subject}.",
        "This {subject} is just {adjective}.",
        "Their {subject} seemed {adjective} to us.",
    )
)
