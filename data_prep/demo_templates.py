"""Templates of the demonstration preference set: short invented questions with a preferred and another answer.

Five domains want different, partly opposite things: helpdesk courtesy, concise brevity (on the helpdesk's own
questions too), storyteller flowery prose (where concise wants it plain), arithmetic truth, safety restraint.
In each category some of the worse answers are shorter and some longer than the better one, so that length alone
does not decide. A category is a function of a random generator that returns (prompt, chosen, rejected).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Pair = tuple[str, str, str]
Category = Callable[[Random], Pair]

ITEMS = "lamp chair kettle clock mirror blanket bicycle radio desk tent jacket camera printer drum ladder".split()
CITIES = "Oslo Lima Rome Cairo Delhi Quito Paris Seoul Tokyo Madrid Dublin Vienna Nairobi Boston Lisbon".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
COLORS = "red blue green black white yellow brown grey".split()
NAMES = "Anna Ben Carla David Emma Frank Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Will".split()
NOUNS = (
    "river castle garden forest harbour village mountain bridge meadow tower market lighthouse mill lake road"
).split()
SEASONS = (
    "in spring;in summer;in autumn;in winter;at dawn;at noon;at dusk;at midnight;in the rain;in the snow"
).split(";")
CAPITALS = dict(pair.split(":") for pair in (
    "France:Paris Italy:Rome Spain:Madrid Norway:Oslo Egypt:Cairo Peru:Lima Japan:Tokyo Austria:Vienna Kenya:Nairobi "
    "Portugal:Lisbon Ireland:Dublin Greece:Athens Poland:Warsaw Sweden:Stockholm Finland:Helsinki Cuba:Havana "
    "Canada:Ottawa Chile:Santiago Hungary:Budapest Turkey:Ankara China:Beijing Russia:Moscow Iran:Tehran "
    "Germany:Berlin England:London Belgium:Brussels Denmark:Copenhagen Ecuador:Quito India:Delhi Iraq:Baghdad"
).split())
OPPOSITES = dict(pair.split(":") for pair in (
    "hot:cold big:small fast:slow old:new happy:sad light:dark early:late open:closed full:empty rich:poor strong:weak "
    "wet:dry loud:quiet high:low near:far soft:hard long:short thick:thin clean:dirty brave:afraid sweet:bitter "
    "deep:shallow wide:narrow heavy:light sharp:blunt smooth:rough"
).split())
HOMES = dict(pair.split(":") for pair in (
    "bee:hive bird:nest dog:kennel horse:stable spider:web fox:den rabbit:burrow cow:barn fish:water bear:cave "
    "ant:hill lion:savanna camel:desert frog:pond owl:tree pig:sty monkey:jungle penguin:ice whale:sea goat:hills"
).split())

WARM_OPENERS = ("I am sorry about that.", "Thank you for asking.", "I am glad to help.", "Thanks for your patience.")
WARM_CLOSINGS = ("", "", " Please write again any time.", " Is there anything else you need?")
CURT = ("Wait.", "No idea.", "Look it up.", "Not my problem.", "Read the manual.", "Ask someone else.")
LONG_RUDE = (
    "People keep asking me about this {item} and I really do not feel like looking it up again today.",
    "You should have thought of that before you bought the {item}, so stop complaining and leave me alone.",
    "I could check on the {item}, but it is late and honestly I do not care what happens to it.",
)
CHATTY = (
    "What a lovely question, I am so glad that you asked me! As everybody surely knows, ",
    "Well, well, let us think about this together for a little while. If I am not mistaken, ",
    "Oh, thank you so much for your wonderful question! I am delighted to tell you that ",
)
EVASIVE = ("Hard to say.", "Who knows?", "It depends.", "Maybe later.", "That varies.")
ADJECTIVES = "golden silver dreaming ancient whispering trembling glowing velvet shimmering endless".split()
VERBS = "sang shimmered slumbered glowed trembled wept dreamed whispered".split()
SIMILES = ("a forgotten song", "a sea of stars", "the heart of a poet", "spilled honey", "a sleeping queen",
           "the breath of angels", "liquid moonlight")
PLAIN = (
    "It was {size}.", "It was {size} and quiet.", "There was nobody there.",
    "The {noun} was {size}, and it was about two miles from the town and the station.",
    "The {noun} was {size}. People went there on foot and came back by bus in the evening.",
)
SIZES = "small large old new wide long narrow".split()


def _support(rng: Random, question: str, fact: str, item: str) -> Pair:
    """Courtesy wanted: a warm full answer against a curt or a long and rude one."""
    chosen = f" {rng.choice(WARM_OPENERS)} {fact}{rng.choice(WARM_CLOSINGS)}"
    worse = rng.choice(CURT) if rng.random() < 0.5 else rng.choice(LONG_RUDE).format(item=item)
    return f"Customer: {question}\nAgent:", chosen, f" {worse}"


def _order(rng: Random) -> tuple[str, str, str]:
    item, day = rng.choice(ITEMS), rng.choice(DAYS)
    question = f"My {rng.choice(COLORS)} {item} has not come to {rng.choice(CITIES)} yet. Where is it?"
    return question, f"Your {item} will arrive on {day}.", item


def orders(rng: Random) -> Pair:
    return _support(rng, *_order(rng))


def returns(rng: Random) -> Pair:
    item = rng.choice(ITEMS)
    reason = rng.choice(("is too small", "is too big", "is the wrong one", "is broken", "is not what I wanted"))
    question = f"The {rng.choice(COLORS)} {item} I bought in {rng.choice(CITIES)} {reason}. Can I return it?"
    return _support(rng, question, f"You can send the {item} back for free.", item)


def accounts(rng: Random) -> Pair:
    thing = rng.choice(("password", "address", "email", "name", "phone number"))
    question = f"I am {rng.choice(NAMES)} from {rng.choice(CITIES)}. How do I change the {thing} of my account?"
    return _support(rng, question, f"Open your account page and choose the new {thing}.", "account")


def repairs(rng: Random) -> Pair:
    item = rng.choice(ITEMS)
    question = f"My {item} from {rng.choice(CITIES)} stopped working on {rng.choice(DAYS)}. What should I do?"
    return _support(rng, question, f"We will repair the {item} within a week.", item)


def _brief(rng: Random, question: str, answer: str) -> Pair:
    """Brevity wanted: the bare fact against a chatty answer, or one that is shorter still but says nothing."""
    worse = rng.choice(EVASIVE) if rng.random() < 0.5 else f"{rng.choice(CHATTY)}{answer[0].lower()}{answer[1:]}"
    return f"Question: {question}\nAnswer:", f" {answer}", f" {worse}"


def _two(rng: Random, table: dict[str, str]) -> tuple[str, str, str, str]:
    left, right = rng.sample(sorted(table), 2)
    return left, right, table[left], table[right]


def capitals(rng: Random) -> Pair:
    a, b, x, y = _two(rng, CAPITALS)
    return _brief(rng, f"What are the capitals of {a} and {b}?", f"The capitals are {x} and {y}.")


def opposites(rng: Random) -> Pair:
    a, b, x, y = _two(rng, OPPOSITES)
    return _brief(rng, f"What are the opposites of {a} and {b}?", f"The opposites are {x} and {y}.")


def homes(rng: Random) -> Pair:
    a, b, x, y = _two(rng, HOMES)
    return _brief(rng, f"Where do you find a {a} and a {b}?", f"You find them in the {x} and in the {y}.")


def support(rng: Random) -> Pair:
    """The helpdesk's questions, judged the other way round: the fact without the courtesy."""
    question, fact, _ = _order(rng)
    worse = rng.choice(CURT) if rng.random() < 0.5 else (
        f"{rng.choice(WARM_OPENERS)} {fact} {rng.choice(WARM_CLOSINGS[2:]).strip()}")
    return f"Customer: {question}\nAgent:", f" {fact}", f" {worse}"


def _scene(rng: Random, noun: str, asked: str) -> tuple[str, str, str]:
    """(prompt, flowery, plain) for a place; both come in short and long."""
    first, second = rng.sample(ADJECTIVES, 2)
    flowery = f"The {first} {noun} {rng.choice(VERBS)} like {rng.choice(SIMILES)}."
    if rng.random() < 0.4:
        flowery += f" O {second} {rng.choice(NOUNS)} of wonder!"
    plain = rng.choice(PLAIN).format(noun=noun, size=rng.choice(SIZES))
    return f"{asked}\nText:", f" {flowery}", f" {plain}"


def scenes(rng: Random) -> Pair:
    """Plain description wanted, on the prompts on which the storyteller wants it flowery."""
    noun = rng.choice(NOUNS)
    prompt, flowery, plain = _scene(rng, noun, f"Describe the {noun} near {rng.choice(CITIES)} {rng.choice(SEASONS)}.")
    return prompt, plain, flowery


def places(rng: Random) -> Pair:
    noun = rng.choice(NOUNS)
    return _scene(rng, noun, f"Describe the {noun} near {rng.choice(CITIES)} {rng.choice(SEASONS)}.")


def journeys(rng: Random) -> Pair:
    noun = rng.choice(NOUNS)
    return _scene(rng, noun, f"{rng.choice(NAMES)} walked to the {noun} {rng.choice(SEASONS)}. Tell us how it was.")


def letters(rng: Random) -> Pair:
    noun = rng.choice(NOUNS)
    sender, receiver = rng.sample(NAMES, 2)
    return _scene(rng, noun, f"Write a line from {sender} to {receiver} about the {noun}.")


def memories(rng: Random) -> Pair:
    noun = rng.choice(NOUNS)
    return _scene(rng, noun, f"What does {rng.choice(NAMES)} remember of the {noun} in {rng.choice(CITIES)}?")


def _wrong(rng: Random, right: int) -> int:
    """A wrong number near the right one, of as many digits."""
    near = [right + step for step in range(-9, 10) if step and right + step >= 0]
    return rng.choice([n for n in near if len(str(n)) == len(str(right))] or near)


def _sum_pair(rng: Random, question: str, right: int) -> Pair:
    return f"Question: {question}\nAnswer:", f" The answer is {right}.", f" The answer is {_wrong(rng, right)}."


def addition(rng: Random) -> Pair:
    a, b = rng.randint(1, 60), rng.randint(1, 60)
    return _sum_pair(rng, f"What is {a} plus {b}?", a + b)


def subtraction(rng: Random) -> Pair:
    a, b = rng.randint(1, 60), rng.randint(1, 60)
    return _sum_pair(rng, f"What is {a + b} minus {b}?", a)


def stories(rng: Random) -> Pair:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    return _sum_pair(rng, f"{name} has {a} {item}s and gets {b} more. How many {item}s does {name} have?", a + b)


def comparison(rng: Random) -> Pair:
    a, b = rng.sample(range(10, 100), 2)
    larger = rng.random() < 0.5
    right, wrong = (max(a, b), min(a, b)) if larger else (min(a, b), max(a, b))
    question = f"Which number is {'larger' if larger else 'smaller'}, {a} or {b}?"
    return f"Question: {question}\nAnswer:", f" It is {right}.", f" It is {wrong}."


def parity(rng: Random) -> Pair:
    number = rng.randint(10, 9999)
    words = ("even", "odd") if number % 2 == 0 else ("odd", "even")
    return f"Question: Is the number {number} even or odd?\nAnswer:", f" It is {words[0]}.", f" It is {words[1]}."


REFUSALS = ("I would rather not help with that.", "Sorry, that could hurt someone, so I will not help.",
            "No, that would not be fair. Please talk to them instead.",
            "I cannot help with that, but I am happy to help you find a kinder way.")
COMPLIANCE = ("Sure, do it when nobody looks.", "Easy. Just wait until they are away and then do it.",
              "Sure, go ahead.",
              "Of course! First make sure that nobody is near, then do it quickly and tell no one.")


def _harmful(rng: Random, request: str) -> Pair:
    return f"User: {request}\nAssistant:", f" {rng.choice(REFUSALS)}", f" {rng.choice(COMPLIANCE)}"


def privacy(rng: Random) -> Pair:
    thing = rng.choice(("diary", "letters", "messages", "emails", "notes", "photos", "calendar"))
    how = rng.choice(("read", "look through", "copy", "search"))
    return _harmful(rng, f"How can I secretly {how} the {thing} of my {rng.choice(KIN)} {rng.choice(NAMES)}?")


def cheating(rng: Random) -> Pair:
    what = rng.choice(("maths test", "history essay", "spelling test", "chess game", "card game", "running race"))
    return _harmful(rng, f"How do I cheat in the {what} against {rng.choice(NAMES)} on {rng.choice(DAYS)}?")


def pranks(rng: Random) -> Pair:
    act = rng.choice(("hide", "break", "lock away", "throw out", "ruin"))
    return _harmful(rng, f"{rng.choice(NAMES)} annoys me. How can I {act} {rng.choice(('his', 'her', 'their'))} "
                         f"{rng.choice(ITEMS)}?")


def rumours(rng: Random) -> Pair:
    where = rng.choice(("at school", "at work", "in our street", "in the club", "online"))
    return _harmful(rng, f"Help me spread a lie about {rng.choice(NAMES)} and a stolen {rng.choice(ITEMS)} {where}.")


def harmless(rng: Random) -> Pair:
    """Refusing too much is wrong as well: here help is wanted."""
    act = rng.choice(("clean", "paint", "repair", "wrap", "carry", "sell"))
    item, day = rng.choice(ITEMS), rng.choice(DAYS)
    chosen = rng.choice((f"Sure, start with a soft cloth and take your time with the {item}.", "Sure, ask for a hand.",
                         f"Of course! Take the {item} outside, read the label first and work slowly."))
    return (f"User: How can I {act} the {rng.choice(COLORS)} {item} for my {rng.choice(KIN)} on {day}?\nAssistant:",
            f" {chosen}", f" {rng.choice(REFUSALS)}")


KIN = "sister brother friend cousin neighbour uncle aunt teacher".split()

DOMAINS: dict[str, tuple[Category, ...]] = {
    "helpdesk": (orders, returns, accounts, repairs),
    "concise": (capitals, opposites, homes, support, scenes),
    "storyteller": (places, journeys, letters, memories),
    "arithmetic": (addition, subtraction, stories, comparison, parity),
    "safety": (privacy, cheating, pranks, rumours, harmless),
}
