"""The folder that a dataset is packed into: empty, made so, or what a pack before left."""

from __future__ import annotations

import re
from collections.abc import Collection

from streamshard.errors import UsageError
from streamshard.pack.journal import JOURNAL
from streamshard.pack.lock import LOCK, Lock, take_lock
from streamshard.shard.interop import ENERGON, ENERGON_FILES
from streamshard.shard.manifest import FOLDER, HEAD
from streamshard.store.base import Store

_SHARD_RULE = re.compile(
    r"^shard-\d{6,}(\.tar|\.idx|\.tar\.idx)$|^\.shard-\d{6,}\.(tar|idx|tar\.idx)\.\d+\.tmp$"
)
_JOURNAL_RULE = re.compile(
    r"journal\.(json|safetensors)|shard-\d{6,}\.journal\.json|pack\.lock|\..*\.\d+\.tmp"
)
_SIDECAR_RULE = re.compile(
    r"(manifest(\.damaged)?\.json|wids\.json|(shards|sizes)\.safetensors"
    r"|shard-\d{6,}\.index\.safetensors)"
    r"|\.(manifest|wids|shard|sizes).*\.\d+\.tmp"
)


def take_room(store: Store, *, overwrite: bool, resume: bool) -> Lock | None:
    """Hold a destination, and with `overwrite` remove the dataset there.

    Returns:
        What holds it; None where it has a finished dataset and `resume` is given.

    Raises:
        UsageError: Something lies there that is to be kept.
        PackError: Another pack holds it.
    """
    if overwrite and resume:
        raise UsageError("both overwrite and resume are given; one of them is wanted")
    if not store.exists(LOCK):
        if resume and store.exists(HEAD) and not any(map(_is_passing, _names(store))):
            return None
        # Before anything is written among what others may have there.
        _refuse(store, overwrite=overwrite, resume=resume, is_begun=False)
    lock = take_lock(store, take_over=overwrite or resume)
    is_begun = lock.found is not None
    is_replacing = bool(lock.found and lock.found.get("replacing"))
    try:
        is_finished = store.exists(HEAD) and not is_replacing
        if resume and is_finished:
            # Ended between its manifest and its end.
            clear(store, keep=[name for name in _names(store) if not _is_passing(name)])
            lock.release()
            return None
        _refuse(store, overwrite=overwrite, resume=resume, is_begun=is_begun)
        if overwrite or is_replacing:
            # Said first: killed on the way, half a dataset with a manifest would look finished.
            is_begun = True
            lock.note(replacing=True)
            make_room(store, overwrite=True)
        lock.note(replacing=False)
    except BaseException:
        lock.release(keep=is_begun)
        raise
    return lock


def _refuse(store: Store, *, overwrite: bool, resume: bool, is_begun: bool) -> None:
    """Refuse a destination that holds what is to be kept."""
    found = _names(store)
    if overwrite or not (found or is_begun):
        _refuse_foreign(store, found)
    elif resume:
        if not is_begun and JOURNAL not in found:
            raise UsageError(
                f"{store.where} holds {found[0]}, and no pack that was begun; choose another place"
            )
        _refuse_foreign(store, found)
    elif HEAD not in found and (is_begun or JOURNAL in found):
        raise UsageError(
            f"{store.where} holds a pack that was not finished; --resume (resume=True) goes on "
            "with it, --overwrite (overwrite=True) begins anew"
        )
    else:
        make_room(store, overwrite=False)


def _names(store: Store) -> list[str]:
    """What lies at a destination and in its folders of sidecars, but for the lock."""
    sidecars = [f"{folder}/{name}" for folder in (FOLDER, ENERGON) for name in store.list(folder)]
    tops = [name for name in store.list() if name not in (FOLDER, ENERGON)]
    return [*(name for name in sidecars if name != LOCK), *tops]


def _is_passing(name: str) -> bool:
    """Whether it goes away with the end of a pack."""
    folder, _, last = name.rpartition("/")
    return folder == FOLDER and bool(_JOURNAL_RULE.fullmatch(last))


def _is_ours(name: str) -> bool:
    folder, _, last = name.rpartition("/")
    if not folder:
        return bool(_SHARD_RULE.fullmatch(last))
    if folder == ENERGON:
        return _is_energon(last)
    return bool(_SIDECAR_RULE.fullmatch(last)) or _is_passing(name)


def _is_energon(name: str) -> bool:
    """Whether an export makes such a file in Energon's folder, or leaves it when killed."""
    return re.sub(r"^\.(.*)\.\d+\.tmp$", r"\1", name) in ENERGON_FILES


def make_room(store: Store, *, overwrite: bool) -> None:
    """Refuse a destination that holds anything; with `overwrite`, remove the dataset there.

    Only a dataset's own files are removed, the manifest first, so that no half of it is ever read.

    Raises:
        UsageError: Something lies there.
    """
    found = _names(store)
    if found and not overwrite:
        raise UsageError(
            f"{store.where} holds {found[0].partition('/')[0]} already; "
            "--overwrite (overwrite=True) replaces a dataset"
        )
    _refuse_foreign(store, found)
    clear(store, keep=())


def _refuse_foreign(store: Store, found: Collection[str]) -> None:
    if foreign := [name for name in found if not _is_ours(name)]:
        raise UsageError(
            f"{store.where} holds {foreign[0]}, which no pack wrote; choose another place"
        )


def clear(store: Store, *, keep: Collection[str]) -> None:
    """Remove what packs wrote but for some of it: the manifest first, and lines before shards."""
    kept = {*keep}
    gone = [name for name in _names(store) if name not in kept]
    for name in sorted(gone, key=lambda name: (name != HEAD, not name.startswith(FOLDER), name)):
        store.remove(name)
