"""From documents to three clean splits: de-duplicate, split by document, drop what leaks, measure what is left.

A leaky split moves the crossing of two processes by a third and every loss by 0.2 nats, so the shares measured
here travel with each result.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from dlm.data.corpus import paragraphs
from dlm.data.leak import WIDTH, sharing, verbatim_share
from dlm.data.source import SPLITS

PREPARATION = 2
"""Part of every cache name: raise it with any change to what a corpus becomes."""

HELD_OUT_SHARE = 0.1
"""Share of the characters, before leaks are dropped, that `tune` and `report` get each."""

SEPARATOR = "\n\n"

SALT = "split 16"  # of the first 24, the one that gives pydoc the most even shares: 59 / 10 / 10 topics


class Paragraph(NamedTuple):
    document: str
    text: str
    normal: str
    """The text with every run of white space as one space: what counts as 'the same' paragraph."""


class Prepared(NamedTuple):
    paragraphs: dict[str, list[str]]
    documents: dict[str, list[int]]
    """The document that each paragraph comes from, as a number."""
    audit: dict


def digest(*parts: str) -> str:
    """SHA-256 of the parts, each ended by a NUL so that ('ab', 'c') and ('a', 'bc') differ."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() + b"\0")
    return sha.hexdigest()


def assign(sizes: dict[str, int]) -> dict[str, str]:
    """The split of each document: lay them end to end in the order of a fixed hash of their names; the split is
    where the middle of a document falls, report in [0, 10 %), tune in [10 %, 20 %), train beyond.

    So each boundary is right to within half a document, which hashing names one by one does not give on 79 topics.
    """
    total, position, split = max(sum(sizes.values()), 1), 0, {}
    for document in sorted(sizes, key=lambda name: digest(SALT, name)):
        middle = (position + sizes[document] / 2) / total
        split[document] = SPLITS[2 - min(int(middle / HELD_OUT_SHARE), 2)]
        position += sizes[document]
    return split


def prepare(documents: Iterable[tuple[str, str]]) -> Prepared:
    """Paragraphs of each split, in reading order of the stream, and the audit of how they came about.

    In train, paragraphs are ordered by a hash of their content. Any prefix of it is therefore a uniform sample of
    its paragraphs, not its first few documents: nested budgets differ in size and in nothing else. Held-out
    paragraphs keep the order they have in their document, one document after the other: so a window of held-out
    text lies in one document, as a rule, and errors can be resampled by document.
    """
    documents = sorted(documents)
    everything = [
        Paragraph(name, text, " ".join(text.split())) for name, whole in documents for text in paragraphs(whole)
    ]
    unique: dict[str, Paragraph] = {}
    for paragraph in everything:
        unique.setdefault(paragraph.normal, paragraph)

    sizes = dict.fromkeys((name for name, _ in documents), 0)
    for paragraph in unique.values():
        sizes[paragraph.document] += len(paragraph.text)
    split_of = assign(sizes)

    splits: dict[str, list[Paragraph]] = {split: [] for split in SPLITS}
    for paragraph in unique.values():
        splits[split_of[paragraph.document]].append(paragraph)
    splits["train"].sort(key=lambda p: digest("order", p.normal))
    clean = dict(splits)
    clean["tune"] = without_overlap(splits["tune"], splits["train"])
    clean["report"] = without_overlap(splits["report"], splits["train"] + clean["tune"])

    raw = {s: SEPARATOR.join(text for name, text in documents if split_of[name] == s) for s in SPLITS}
    texts = {split: [p.text for p in clean[split]] for split in SPLITS}
    number = {name: i for i, (name, _) in enumerate(documents)}
    audit = {
        "documents": {s: sum(where == s for where in split_of.values()) for s in SPLITS},
        "paragraphs": {s: len(texts[s]) for s in SPLITS},
        "chars": {s: len(SEPARATOR.join(texts[s])) for s in SPLITS},
        "duplicates_dropped": len(everything) - len(unique),
        "overlaps_dropped": {s: len(splits[s]) - len(clean[s]) for s in SPLITS[1:]},
        "leak": {
            "width": WIDTH,
            "before": leaks(raw),
            "after": leaks({s: SEPARATOR.join(texts[s]) for s in SPLITS}),
        },
    }
    return Prepared(texts, {split: [number[p.document] for p in clean[split]] for split in SPLITS}, audit)


def without_overlap(held_out: list[Paragraph], seen: list[Paragraph]) -> list[Paragraph]:
    """The held-out paragraphs that share no 50-character shingle, white space apart, with those already seen."""
    shared = sharing([p.normal for p in held_out], [p.normal for p in seen])
    return [paragraph for paragraph, leaked in zip(held_out, shared, strict=True) if not leaked]


def leaks(texts: dict[str, str]) -> dict[str, float]:
    """Share of the 50-character windows of held-out text, at all offsets, found verbatim in an earlier split."""
    return {
        "tune_in_train": verbatim_share(texts["tune"], texts["train"]),
        "report_in_train": verbatim_share(texts["report"], texts["train"]),
        "report_in_tune": verbatim_share(texts["report"], texts["tune"]),
    }
