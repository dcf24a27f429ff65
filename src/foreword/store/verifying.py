"""Reading every byte of a store."""

from __future__ import annotations

from foreword import status
from foreword.errors import PrefixFormatError, UnknownPrefixError
from foreword.store.problem import Problem
from foreword.versions.names import check_name, parse
from foreword.versions.place import Place


def verified(place: Place, reference: str | None) -> tuple[int, list[Problem]]:
    """Return (versions read, what is wrong). reference: a name, a version, or None for all."""
    if reference is not None and "@" in reference:
        wanted = parse(reference)
        digests = [place.find(wanted)]
        return 1, _of_versions(place, wanted.name, digests)
    if reference is not None:
        check_name(reference)
    names = place.names() if reference is None else [reference]
    count, problems = 0, []
    for number, name in enumerate(names):
        status.doing("reading every byte", number, len(names))
        digests = place.digests(name)
        if not digests and reference is not None:
            raise UnknownPrefixError(f"the store {place.url} has no {name}; foreword store list shows what there is")
        count += len(digests)
        problems += [*_of_versions(place, name, digests), *_of_tags(place, name, digests)]
    return count, problems


def _of_versions(place: Place, name: str, digests: list[str]) -> list[Problem]:
    found = []
    for digest in digests:
        problems = place.problems(name, digest)
        if not problems:
            try:
                place.version(name, digest)
            except PrefixFormatError as error:  # whole, but of another name
                problems = [str(error)]
        found += [Problem(f"{name}@{digest[:12]}", problem) for problem in problems]
    return found


def _of_tags(place: Place, name: str, digests: list[str]) -> list[Problem]:
    try:
        tags = place.tags(name)
    except PrefixFormatError as error:
        return [Problem(name, str(error))]
    lost = [tag for tag in tags.values() if tag.digest not in digests]
    return [Problem(f"{name}@{tag.tag}", f"means {tag.digest[:12]}, which is not there; set it again") for tag in lost]
