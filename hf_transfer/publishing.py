"""Floor 4: push a finished run to the Hub: one commit, repeated until it is there, and checked against what is there.

A push converges: each attempt looks at the repository, sends what differs and compares hashes afterwards. Large files
are stored by content before the commit names them, so an attempt that was cut off leaves nothing half done and the next
one does not send them again. The branch moves once, from the old state to the whole new one; a commit that is based on
another state than was looked at is refused by the Hub, and the next attempt looks again.

huggingface_hub is imported when something is pushed: it costs a third of a second. Tokens are found by it (HF_TOKEN,
`hf auth login`) and appear in nothing that is written here.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_transfer.config import PublishConfig, RunConfig
from hf_transfer.errors import InputError, RunError, printable
from hf_transfer.parcel import Parcel, SentFile, pack, was_pushed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Got = TypeVar("Got")

ATTEMPTS = 6
FIRST_WAIT_SECONDS = 1.0
"""Doubled after each attempt; 31 seconds in all, unless the Hub asks for more."""
LONGEST_WAIT_SECONDS = 300.0
"""What the Hub may ask for (Retry-After) before it is left for later."""
WORTH_ANOTHER = {408, 409, 412, 425, 429}
"""Client errors that pass: timeouts, another commit in between, limits of rate. All others of 400 to 499 stay."""
MESSAGE = "Publish with hf-transfer-learning"
LATEST_REQUESTS = 10
"""Open pull requests in which the same push is looked for."""


@dataclass(frozen=True)
class Published:
    """Where a run is on the Hub."""

    repo_id: str
    commit: str
    url: str
    """Of the repository, or of the pull request."""
    changed: tuple[str, ...]
    """Paths that this push wrote or removed; () where all was there already and nothing was committed."""


def check_publishing(config: RunConfig) -> None:
    """Refuse, before training, a push that this machine cannot make; nothing is sent.

    Raises:
        InputError: offline mode, no token, or an adapter that others could not open; all together.
    """
    repo_id = config.publish.repo_id
    if repo_id is None:
        return
    found = [f"--publish.repo_id {repo_id} {problem}" for problem in _machine_problems()]
    is_local = Path(config.model.checkpoint).expanduser().is_dir()
    if config.adapt.strategy == "lora" and is_local and "merged" not in config.publish.export:
        found.append(
            f"--publish.repo_id {repo_id} would send an adapter of {config.model.checkpoint}, a folder that nobody "
            "else has: add --publish.export merged, or start from a Hub id."
        )
    if found:
        raise InputError(found)


def push(
    folder: str | Path, repo_id: str, private: bool = False, revision: str | None = None, create_pr: bool = False
) -> Published:
    """Send the finished run in ``folder`` to a Hub repository, which is made where it is missing.

    What is sent is printed first: model or adapter (and its merged form), tokenizer, card, results.json, config.yaml,
    the table of scores and its picture. Files that an earlier push of this kind left and this one does not have are
    removed in the same commit.

    Args:
        repo_id: ``me/model``, or ``model`` for a repository of the token's owner.
        private: Make a new repository private; one that is public is refused.
        revision: Branch, made where it is missing; by default main.
        create_pr: Open a pull request against main instead.

    Raises:
        InputError: it cannot work, or should not; nothing was sent.
        RunError: the Hub could not be reached, refused, or holds something else afterwards. Everything is still in
            ``folder``; the message has the command that tries again.
    """
    folder, settings = Path(folder), PublishConfig((), repo_id, private, revision, create_pr)
    problems = settings.problems() + [f"--repo_id {repo_id} {problem}" for problem in _machine_problems()]
    if problems:
        raise InputError([problem.replace("--publish.", "--") for problem in problems])
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        name = repo_id if "/" in repo_id else f"{_patiently(api.whoami)['name']}/{repo_id}"
        parcel = pack(folder, name, revision)
        _announce(folder, name, settings, parcel)
        published = _patiently(lambda: _attempt(api, name, settings, parcel))
    except (InputError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever stopped it, the model is safe, and the reader must learn how to go on
        # not chained: what a server said may hold the token
        raise RunError(
            f"{folder} could not be pushed to {repo_id} ({_without_token(error)}). Nothing is lost: the model is in "
            f"{folder / 'model'}, and the branch was left as it was or has all of it. Try again with: "
            f"{retry_command(folder, settings)}"
        ) from None
    print(f"{'Already there' if not published.changed else 'Published'}: {published.url} ({published.commit[:7]})")
    return published


def retry_command(folder: Path, settings: PublishConfig) -> str:
    """The command line that pushes ``folder`` with these settings."""
    words = ["hf-transfer", "push", str(folder), "--repo_id", str(settings.repo_id)]
    words += ["--private"] if settings.private else []
    words += ["--revision", settings.revision] if settings.revision is not None else []
    words += ["--create_pr"] if settings.create_pr else []
    return shlex.join(words)


def _machine_problems() -> list[str]:
    """Why nothing can be pushed from here."""
    from huggingface_hub import constants, get_token

    found = []
    if constants.HF_HUB_OFFLINE:
        found.append("needs a network, and HF_HUB_OFFLINE is set: unset it, or push later with hf-transfer push.")
    if not get_token():
        found.append("needs a token, and there is none: log in with `hf auth login`, or set HF_TOKEN.")
    return found


def _announce(folder: Path, repo_id: str, settings: PublishConfig, parcel: Parcel) -> None:
    """List exactly what will be sent, before anything is."""
    where = "as a pull request" if settings.create_pr else f"branch {settings.revision or 'main'}"
    kind = ", private" if settings.private else ""
    width = max(len(file.path) for file in parcel.files)
    lines = [f"To {repo_id} ({where}{kind}) go {len(parcel.files)} files of {folder}, {_size(parcel.bytes)}:"]
    lines += [f"  {file.path:<{width}}  {_size(file.size):>9}" for file in parcel.files]
    print("\n".join([*lines, *parcel.notes]), flush=True)


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


# ---- one attempt -----------------------------------------------------------------------------------------------


def _attempt(api: HfApi, repo_id: str, settings: PublishConfig, parcel: Parcel) -> Published:
    """Look, send what differs in one commit, look again.

    Raises:
        InputError: a public repository where a private one was asked for.
        Exception: whatever huggingface_hub raises; and RuntimeError where the commit holds something else.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    _make_repository(api, repo_id, settings)
    branch = settings.revision or "main"
    head = str(api.repo_info(repo_id, revision=branch).sha)
    there = _tree(api, repo_id, head)
    new = [file for file in parcel.files if not _is_same(file, there.get(file.path))]
    mine = {file.path for file in parcel.files}
    old = [path for path in there if was_pushed(path, there.keys()) and path not in mine]
    url = f"{api.endpoint}/{repo_id}"
    if not new and not old:
        return Published(repo_id, head, url, ())
    if settings.create_pr and (found := _open_request(api, repo_id, parcel.files)):
        return found
    if old:
        print(printable(f"Removed there, left by an earlier push: {', '.join(old)}"), flush=True)
    additions = [
        CommitOperationAdd(file.path, file.content if isinstance(file.content, bytes) else str(file.content))
        for file in new
    ]
    commit = api.create_commit(
        repo_id,
        [*additions, *(CommitOperationDelete(path) for path in old)],
        commit_message=MESSAGE,
        revision=branch,
        create_pr=settings.create_pr,
        parent_commit=head,
    )
    now = _tree(api, repo_id, commit.oid)
    differing = [file.path for file in parcel.files if not _is_same(file, now.get(file.path))]
    if differing:
        raise RuntimeError(f"the commit {commit.oid} holds something else than was sent at {', '.join(differing[:5])}")
    return Published(repo_id, commit.oid, commit.pr_url or url, (*(file.path for file in new), *old))


def _make_repository(api: HfApi, repo_id: str, settings: PublishConfig) -> None:
    """See to it that repository and branch are there, and that what should be private is."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=settings.private or None, exist_ok=True)
        info = api.repo_info(repo_id)
    if settings.private and info.private is False:
        raise InputError(
            f"{repo_id} exists and is public, and --private was asked for: make it private on the Hub first, choose "
            "another name, or leave --private out."
        )
    if settings.revision not in (None, "main"):
        api.create_branch(repo_id, branch=str(settings.revision), exist_ok=True)


def _tree(api: HfApi, repo_id: str, revision: str) -> dict[str, Any]:
    """Files of a revision by path, as huggingface_hub's ``RepoFile``."""
    listed = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {item.path: item for item in listed if hasattr(item, "blob_id")}


def _is_same(file: SentFile, there: Any) -> bool:
    """Whether the Hub's file has this content, by the hash that it keeps of it."""
    if there is None or there.size != file.size:
        return False
    return there.lfs.sha256 == file.sha256 if there.lfs else there.blob_id == file.git_sha1


def _open_request(api: HfApi, repo_id: str, files: Iterable[SentFile]) -> Published | None:
    """An open pull request that holds exactly this already: a repeated push, or one whose answer was lost."""
    found = api.get_repo_discussions(repo_id, discussion_type="pull_request", discussion_status="open")
    mine = [request for request in found if request.title == MESSAGE][:LATEST_REQUESTS]
    for request in mine:
        reference = str(request.git_reference)
        there = _tree(api, repo_id, reference)
        if all(_is_same(file, there.get(file.path)) for file in files):
            commit = str(api.repo_info(repo_id, revision=reference).sha)
            return Published(repo_id, commit, request.url, ())
    return None


# ---- attempts --------------------------------------------------------------------------------------------------


def _patiently(step: Callable[[], Got]) -> Got:
    """What ``step`` returns, tried again after errors that may pass; ``step`` must be safe to repeat."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return step()
        except Exception as error:
            wait = _seconds_to_wait(error, attempt)
            if wait is None or attempt == ATTEMPTS:
                raise
            print(printable(f"The push was interrupted ({_without_token(error)}): again in {wait:g} s"), flush=True)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _seconds_to_wait(error: Exception, attempt: int) -> float | None:
    """How long until the next attempt; None where another would end in the same way."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    chain = _chain(error)
    if any(isinstance(link, (InputError, OfflineModeIsEnabled)) for link in chain):
        return None
    response = next((link.response for link in chain if isinstance(link, HfHubHTTPError)), None)
    status = 0 if response is None else response.status_code
    if 400 <= status < 500 and status not in WORTH_ANOTHER:
        return None
    asked = "" if response is None else response.headers.get("Retry-After", "")
    wait = max(FIRST_WAIT_SECONDS * 2 ** (attempt - 1), float(asked) if asked.isdigit() else 0.0)
    return wait if wait <= LONGEST_WAIT_SECONDS else None


def _chain(error: BaseException | None) -> list[BaseException]:
    """``error`` and what caused it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def _without_token(error: Exception) -> str:
    """What went wrong on one line, the token struck out wherever a server repeated it."""
    from huggingface_hub import get_token

    text = " ".join(f"{type(error).__name__}: {error}".split())
    for link in _chain(error)[1:]:
        text += " because of " + " ".join(f"{type(link).__name__}: {link}".split())
    token = get_token()
    text = text.replace(token, "***") if token else text
    return text if len(text) <= 400 else text[:400] + " ..."
