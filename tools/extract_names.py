"""Rebuilds the alphabet_sort task's name pools from Faker: `python tools/extract_names.py`.

The pools ship as text, so that problems never depend on the Faker version installed; this recipe alone needs Faker
(github.com/joke2k/faker, MIT licence). A name is kept when it is plain ASCII and has two to four letters, so that three
of them fit the shipped base. Every name, whether first or last, belongs to the training or to the test side, by a hash
of its letters: the two sides share no first name, no last name, and no first name that is the other side's last name.
"""

import argparse
import hashlib
import importlib
import os
from pathlib import Path

LOCALES = (
    "en_US",
    "en_GB",
    "en_IE",
    "en_IN",
    "en_NZ",
    "de_DE",
    "es_ES",
    "it_IT",
    "fr_FR",
    "nl_BE",
    "sv_SE",
    "da_DK",
)
TEST_SHARE = 0.3

SHIPPED = Path(__file__).parent.parent / "src" / "multiticket" / "tasks" / "data"

HEADER = """\
# {side} {kind} names of two to four letters from Faker {version} (MIT licence), locales {locales}.
# Made by: python tools/extract_names.py
"""


def is_short_name(name: str) -> bool:
    """True for a capital and one to three small letters, all ASCII."""
    return name.isascii() and name.isalpha() and 2 <= len(name) <= 4 and name == name.capitalize()


def is_test_name(name: str) -> bool:
    """True for the names that only test problems may use; depends on nothing but the letters."""
    digest = hashlib.sha256(f"alphabet_sort:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64


def faker_names(kind: str) -> set[str]:
    """All short names of a kind, `first` or `last`, in Faker's lists for LOCALES."""
    names: set[str] = set()
    for locale in LOCALES:
        provider = importlib.import_module(f"faker.providers.person.{locale}").Provider
        for field in (f"{kind}_names", f"{kind}_names_male", f"{kind}_names_female"):
            names.update(name for name in getattr(provider, field, ()) if is_short_name(name))
    return names


def main() -> None:
    import faker

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for kind in ("first", "last"):
        names = faker_names(kind)
        for side in ("train", "test"):
            chosen = sorted(name for name in names if is_test_name(name) == (side == "test"))
            header = HEADER.format(side=side, kind=kind, version=faker.VERSION, locales=", ".join(LOCALES))
            path = arguments.output / f"names_{kind}_{side}.txt"
            temporary = path.with_name(path.name + ".part")
            temporary.write_text(header + "".join(f"{name}\n" for name in chosen), encoding="utf-8")
            os.replace(temporary, path)
            print(f"{path.name}: {len(chosen)} names")


if __name__ == "__main__":
    main()
