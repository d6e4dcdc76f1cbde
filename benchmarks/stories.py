"""Stories to train on, from a grammar of sentences: small words, a few turns, one ending.

    python benchmarks/stories.py 4 > stories.txt
    python train.py stories.txt --out models/stories --minutes 5
    python gpt2.py "" --model_size stories --n_tokens_to_generate 300 --temperature 0.8

The number is the length in MB. Between two stories stands <|endoftext|>, so the model learns to
end one, and an empty prompt begins one. Who a story is about, what is lost and who helps come back
in its later sentences: so it shows whether a model looks that far back.
"""

import argparse
import random
import sys

PEOPLE = {
    "girl": "Anna Lily Mia Zoe Ella Rosa Nora Ida Lucy Emma".split(),
    "boy": "Tom Ben Max Leo Sam Jack Finn Otto Paul Tim".split(),
}
WORDS = {"girl": ("she", "her"), "boy": ("he", "his")}
ANIMALS = "dog cat bird fox rabbit frog bear mouse duck horse".split()
ADJECTIVES = "small big old red blue shiny soft green lost funny".split()
THINGS = "ball book hat key boat kite drum lamp shoe spoon".split()
PLACES = "the park,the forest,the beach,the garden,the river,the hill,the market,the farm".split(
    ","
)
HIDING = "under a tree,behind a rock,in the grass,in a box,on a bench,near the water".split(",")
WEATHER = "sunny rainy windy cold warm cloudy".split()
MOODS = "happy proud glad".split()
FOOD = "apples cake bread soup cookies pears".split()


def story(rng):
    """-> a story of 5 to 11 sentences"""
    kind = rng.choice(list(PEOPLE))
    name, (they, their) = rng.choice(PEOPLE[kind]), WORDS[kind]
    animal, adjective, thing = rng.choice(ANIMALS), rng.choice(ADJECTIVES), rng.choice(THINGS)
    place, hiding = rng.choice(PLACES), rng.choice(HIDING)
    what = f"{adjective} {thing}"
    lines = [
        f"Once upon a time, there was a {kind} named {name}.",
        rng.choice(
            [
                f"{name} had a {what}, and {they} loved it very much.",
                f"{name} loved {their} {what} more than all {their} other toys.",
            ]
        ),
        f"One {rng.choice(WEATHER)} day, {name} took the {thing} to {place}.",
        rng.choice(
            [
                f"But when {they} wanted to play, the {thing} was gone!",
                f"The wind blew, and the {what} was gone.",
            ]
        ),
    ]
    if rng.random() < 0.7:
        lines.append(f"{name} was very sad and began to cry.")
    lines.append(f"Then a {animal} came by.")
    if rng.random() < 0.8:
        lines += [
            f'"Why are you sad?" asked the {animal}.',
            f'"I lost my {what}," said {name}.',
            f'"Do not cry. I will help you," said the {animal}.',
        ]
    for wrong in rng.sample([h for h in HIDING if h != hiding], rng.randrange(3)):
        lines.append(f"They looked {wrong}, but the {thing} was not there.")
    lines.append(f"They looked {hiding}, and there was the {what}!")
    if rng.random() < 0.6:
        lines.append(f'"Thank you," said {name}, and gave the {animal} some {rng.choice(FOOD)}.')
    lines.append(
        f"{name} was {rng.choice(MOODS)}, and from that day on, the {kind} and the {animal} were "
        "best friends."
    )
    cut = rng.randrange(4, len(lines) - 1)
    return " ".join(lines[:cut]) + "\n\n" + " ".join(lines[cut:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("megabytes", nargs="?", type=float, default=4, help="(4)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, n_bytes = random.Random(args.seed), 0
    while n_bytes < args.megabytes * 1e6:
        n_bytes += sys.stdout.write(story(rng) + "\n<|endoftext|>\n")


if __name__ == "__main__":
    main()
