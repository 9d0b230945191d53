"""Tickets on the hub: a repository with one file, and a card that says what it is.

Through ``huggingface_hub``, which has the token (``hf auth login`` or HF_TOKEN), the cache and the addresses.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiticket.ticket import card
from multiticket.ticket.ticket import Ticket

FILE = "ticket.safetensors"
_REPO = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def repository(name: str | os.PathLike[str]) -> tuple[str, str | None] | None:
    """`owner/name` and, where it is written `owner/name@revision`, the revision; None for what is a path."""
    text = os.fspath(name)
    found = _REPO.fullmatch(text)
    if found is None or text.endswith(".safetensors") or Path(text).exists():
        return None
    return found[1], found[2]


def download(repo: str, revision: str | None = None) -> Path:
    """The ticket's file in the hub's cache. Raises ValueError where it cannot be had."""
    hub = _client()
    from huggingface_hub import errors

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(hub.hf_hub_download(repo, FILE, revision=revision, library_name="multiticket"))
    except errors.GatedRepoError:
        reason = "its owner must grant you access first"
    except errors.RepositoryNotFoundError:
        reason = "it has no repository of this name, or a private one and you are not logged in"
    except errors.RevisionNotFoundError:
        reason = "there is no such revision"
    except errors.LocalEntryNotFoundError:
        reason = "the hub cannot be reached, and the cache does not have it"
    except errors.EntryNotFoundError:
        reason = f"the repository has no {FILE}"
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
    raise ValueError(f"There is no file {repo}, and the hub did not give that ticket{at}: {reason}.")


def push(
    ticket: Ticket,
    repo: str,
    base: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Upload the ticket and its card in one commit, and return that commit's address.

    The repository (and the branch `revision`) is made where it is missing. Of a card that is there already only what
    multiticket wrote is written anew. Local paths in the provenance are cut to their last name.

    Raises ValueError where the base is not known by a name that others have, or the hub refuses.
    """
    hub = _client()
    if _REPO.fullmatch(repo) is None or "@" in repo:
        raise ValueError(f"A repository is named owner/name, not {repo!r}.")
    base, on_hub = _base(ticket, base)
    shared = Ticket.from_sections(ticket.sections, shareable(ticket.provenance, base))
    api = hub.HfApi(library_name="multiticket")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        text = _card(hub, shared, repo, base, on_hub, revision, license)
        with tempfile.TemporaryDirectory() as folder:
            shared.save(Path(folder) / FILE)
            (Path(folder) / "README.md").write_text(text, encoding="utf-8")
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, revision=revision, commit_message=message or "Upload ticket"
            )
    except (hub.errors.HfHubHTTPError, hub.errors.LocalTokenNotFoundError, OSError) as error:
        raise ValueError(f"The hub refused {repo}: {_reason(error)}.") from None
    return str(done.commit_url)


def shareable(provenance: Mapping[str, Any], base: str) -> dict[str, Any]:
    """The provenance with the base's public name, and no path of this machine."""
    found = {name: _without_paths(value) for name, value in provenance.items()}
    if "model" in found:
        found["model"] = base
    return found


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"(?:(?<=[@=\s])|^)(?:~|\.{1,2})?/[^\s,]*/([^\s,/]+)", r"\1", value)
    if isinstance(value, Mapping):
        return {name: _without_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return value


def _base(ticket: Ticket, given: str | None) -> tuple[str, bool]:
    """The base's name, and whether that is one on the hub (or else a shipped base)."""
    named = given or ticket.told.get("model")
    named = str(named) if named else None
    if named is None:
        raise ValueError("The ticket does not name its base: give it as base='owner/name'.")
    on_hub = _REPO.fullmatch(named) is not None and not Path(named).exists()
    if not on_hub and (Path(named).exists() or "/" in named or "\\" in named):
        raise ValueError(
            f"The ticket's base is {named}, a local folder: give its name on the hub, as base='owner/name'."
        )
    return named, on_hub


def _card(
    hub: Any, ticket: Ticket, repo: str, base: str, on_hub: bool, revision: str | None, license: str | None
) -> str:
    results = [hub.EvalResult(**result) for result in card.results(ticket)]
    data = card.metadata(ticket, repo, base, on_hub, license)
    new = hub.ModelCardData(**data, **({"eval_results": results} if results else {}))
    ours = card.describe(ticket, repo, base, on_hub)
    try:
        path = hub.hf_hub_download(repo, "README.md", revision=revision, force_download=True)
        old = hub.ModelCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except hub.errors.EntryNotFoundError:
        return f"---\n{new.to_yaml()}\n---\n\n# {repo.split('/')[1]}\n\n{ours}\n"
    theirs, mine = old.data.to_dict(), new.to_dict()
    tags = list(dict.fromkeys([*theirs.get("tags", ()), *mine["tags"]]))
    kept = hub.ModelCardData(**{**theirs, **mine, "tags": tags}, ignore_metadata_errors=True)
    before, found, rest = old.text.partition(card.BEGIN)
    after = rest.partition(card.END)[2] if found else ""
    text = f"{before.strip()}\n\n{ours}\n\n{after.strip()}".strip()
    return f"---\n{kept.to_yaml()}\n---\n\n{text}\n"


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError('Tickets on the hub need huggingface_hub: pip install "multiticket[hub]".') from None
    return huggingface_hub


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "you are not logged in with a token that may write there (hf auth login, or HF_TOKEN)"
    return " ".join(str(error).split())[:200] or type(error).__name__
