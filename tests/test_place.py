"""The state folder: where it may be, whose it must be, and what becomes of a damaged database."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import taskorch
from taskorch.domain.errors import StoreError
from taskorch.storage import place

SOMEBODY = 12_345  # a uid that is not ours
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:50 / /net/home rw,relatime shared:1 master:2 - nfs4 server:/home rw
41 40 254:1 / /net/home/local rw - xfs /dev/vdb rw
42 27 0:51 / /net/a\040folder rw - fuse.sshfs me@host: rw
43 27 0:52 / /over rw - cifs //host/share rw
44 43 254:2 / /over rw - ext4 /dev/vdc rw
45 27 0:53 / /plain rw - fuse.ntfs /dev/vdd rw
a line of another kernel
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    file = tmp_path / "mountinfo"
    file.write_text(MOUNTS)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


# File systems


@pytest.mark.parametrize(
    ("folder", "point", "kind"),
    [
        ("/home/me/.local/state", "/", "ext4"),
        ("/", "/", "ext4"),
        ("/net/home", "/net/home", "nfs4"),
        ("/net/home/me/not/there/yet", "/net/home", "nfs4"),
        ("/net/homestead", "/", "ext4"),
        ("/net/home/local/me", "/net/home/local", "xfs"),
        ("/net/a folder/me", "/net/a folder", "fuse.sshfs"),
        ("/over/me", "/over", "ext4"),
    ],
)
def test_a_folder_is_on_the_file_system_mounted_nearest_above_it(
    folder: str, point: str, kind: str, mounts: Path
) -> None:
    assert place.mount_of(Path(folder), mounts) == place.Mount(point, kind)


def test_a_link_into_a_network_file_system_does_not_hide_it(tmp_path: Path, mounts: Path) -> None:
    (tmp_path / "link").symlink_to("/net/home/me")
    with pytest.raises(StoreError, match="nfs4"):
        place.refuse_network(tmp_path / "link", mounts)


def test_a_network_file_system_is_refused_with_reason_and_way_out(mounts: Path) -> None:
    with pytest.raises(StoreError) as raised:
        place.refuse_network(Path("/net/home/me/state"), mounts)
    for said in ("/net/home/me/state", "nfs4", "/net/home)", "TASKORCH_STATE_DIR", "TASKORCH_ALLOW_NETWORK_STATE=1"):
        assert said in str(raised.value)


SHARED = ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "vboxsf", "virtiofs"]
SHARED_FUSE = ["fuse.sshfs", "fuse.glusterfs", "fuse.rclone"]
LOCAL = ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "f2fs", "fuse", "fuseblk", "fuse.ntfs"]


@pytest.mark.parametrize("kind", SHARED + SHARED_FUSE)
def test_these_file_systems_are_shared_between_machines(kind: str) -> None:
    assert place.Mount("/", kind).is_shared


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "f2fs", "fuse", "fuseblk", "fuse.ntfs"]
)
def test_local_file_systems_are_accepted(kind: str) -> None:
    assert not place.Mount("/", kind).is_shared


def test_the_system_s_own_list_is_understood(tmp_path: Path) -> None:
    if not place.MOUNTS.exists():
        pytest.skip("only Linux lists its mounts")
    mount = place.mount_of(tmp_path)
    assert mount and tmp_path.is_relative_to(mount.point)
    assert os.stat(mount.point).st_dev == tmp_path.stat().st_dev


def test_a_system_without_a_list_of_mounts_is_not_refused(tmp_path: Path) -> None:
    assert place.mount_of(tmp_path, tmp_path / "none") is None
    place.refuse_network(tmp_path, tmp_path / "none")


def test_the_state_folder_is_not_made_on_a_network_file_system_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "mount_of", lambda *_: place.Mount("/", "nfs"))
    with pytest.raises(StoreError, match="nfs"):
        place.own_folder(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    place.own_folder(tmp_path / "state", allow_network=True)
    assert mode(tmp_path / "state") == "0o700"


# Owners and rights


def test_folder_and_file_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        place.own_folder(tmp_path / "new" / "state")
        place.own_file(tmp_path / "new" / "state" / "taskorch.db")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new" / "state") == "0o700"
    assert mode(tmp_path / "new" / "state" / "taskorch.db") == "0o600"


def test_rights_that_are_too_wide_or_too_narrow_are_mended(folder: Path) -> None:
    (folder / "taskorch.db").write_text("kept")
    for folder_mode, file_mode in ((0o777, 0o666), (0o500, 0o400)):
        folder.chmod(folder_mode)
        (folder / "taskorch.db").chmod(file_mode)
        place.own_folder(folder)
        place.own_file(folder / "taskorch.db")
        assert (mode(folder), mode(folder / "taskorch.db")) == ("0o700", "0o600")
    assert (folder / "taskorch.db").read_text() == "kept"


@as_root
def test_another_user_s_folder_is_refused_and_left_as_it_is(folder: Path) -> None:
    folder.chmod(0o755)
    os.chown(folder, SOMEBODY, -1)
    with pytest.raises(StoreError, match=rf"state folder {folder} belongs to the user with uid {SOMEBODY}.*uid 0"):
        place.own_folder(folder)
    assert mode(folder) == "0o755"


@as_root
@pytest.mark.parametrize("name", ["taskorch.db", "taskorch.db-wal", "taskorch.db-shm"])
def test_another_user_s_file_is_refused_and_named(name: str, folder: Path) -> None:
    (folder / "taskorch.db").write_text("")
    (folder / name).write_text("")
    (folder / name).chmod(0o644)
    os.chown(folder / name, SOMEBODY, -1)
    with pytest.raises(StoreError, match=rf"{name} belongs to the user with uid {SOMEBODY}"):
        place.own_file(folder / "taskorch.db")
    assert mode(folder / name) == "0o644"


@pytest.mark.parametrize("there", [True, False])
def test_a_database_that_is_a_link_is_refused_and_not_followed(there: bool, folder: Path, tmp_path: Path) -> None:
    if there:
        (tmp_path / "elsewhere.db").write_text("")
        (tmp_path / "elsewhere.db").chmod(0o644)
    (folder / "taskorch.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(StoreError, match=r"taskorch\.db is a symbolic link"):
        place.own_file(folder / "taskorch.db")
    assert (tmp_path / "elsewhere.db").exists() == there
    assert not there or mode(tmp_path / "elsewhere.db") == "0o644"


def test_a_folder_in_the_place_of_the_database_is_refused(folder: Path) -> None:
    (folder / "taskorch.db").mkdir()
    with pytest.raises(StoreError, match="not a plain file"):
        place.own_file(folder / "taskorch.db")


def test_a_folder_that_all_users_share_is_not_closed_to_them(folder: Path) -> None:
    folder.chmod(0o1777)
    with pytest.raises(StoreError, match="all users share"):
        place.own_folder(folder)
    assert mode(folder) == "0o1777"


def test_a_folder_that_cannot_be_made_says_which_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"Not a directory: .*file/state.*TASKORCH_STATE_DIR"):
        place.own_folder(tmp_path / "file" / "state")


def test_a_read_only_file_system_is_named_as_the_reason(folder: Path) -> None:
    """In a mount name space of its own, so that nobody else sees it."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    (folder / "taskorch.db").write_text("")
    (folder / "taskorch.db").chmod(0o600)
    folder.chmod(0o700)
    look = f"""if True:
        import pathlib
        from taskorch.domain import errors
        from taskorch.storage import place
        for check in (lambda f: place.own_folder(f), lambda f: place.own_file(f / "taskorch.db"),
                      lambda f: place.own_file(f / "new.db")):
            try:
                check(pathlib.Path({str(folder)!r}))
            except errors.StoreError as error:
                print(error)
    """
    script = f'mount --bind "{folder}" "{folder}" && mount -o remount,ro,bind "{folder}" && exec "$0" -c "$1"'
    shell = ["unshare", "-m", "sh", "-c", script, sys.executable, look]
    environment = os.environ | {"PYTHONPATH": str(Path(taskorch.__file__).parents[1])}
    done = subprocess.run(shell, capture_output=True, text=True, env=environment, timeout=20)
    if "mount:" in done.stderr:
        pytest.skip("mounting is not allowed here")
    said = done.stdout.splitlines()
    assert len(said) == 3, done.stderr
    assert all("ead-only" in line and "TASKORCH_STATE_DIR" in line for line in said)


def test_free_space_is_what_may_still_be_written(tmp_path: Path) -> None:
    assert 0 < place.free_bytes(tmp_path) <= shutil.disk_usage(tmp_path).free + 2**30
    with pytest.raises(OSError, match="none"):
        place.free_bytes(tmp_path / "none")


# One at a time


def test_only_one_at_a_time_opens_the_folder(folder: Path) -> None:
    order: list[str] = []
    first, second = threading.Event(), threading.Event()

    def other() -> None:
        second.set()
        with place.held(folder):
            order.append("second")

    with place.held(folder):
        thread = threading.Thread(target=other)
        thread.start()
        assert second.wait(5)
        first.wait(0.05)  # the other one tries several times
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
    assert os.listdir(folder) == []


def test_one_that_holds_the_folder_for_too_long_is_told_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "OPENING_SECONDS", 0.0)
    with place.held(folder), pytest.raises(StoreError, match="Another taskorch has been opening"), place.held(folder):
        pass


# Damaged files


def test_what_is_moved_aside_is_kept_whole_and_can_be_found(folder: Path) -> None:
    path = folder / "taskorch.db"
    for ending in ("", "-wal", "-shm"):
        (folder / f"taskorch.db{ending}").write_text(f"content{ending}")
    aside = place.set_aside(path)
    assert place.set_aside_files(folder) == [aside]
    assert aside.name.startswith("taskorch.db.corrupt-2") and aside.name.endswith("Z")
    assert {name.removeprefix(aside.name): (folder / name).read_text() for name in os.listdir(folder)} == {
        "": "content",
        "-wal": "content-wal",
        "-shm": "content-shm",
    }


def test_two_moved_in_one_second_do_not_replace_each_other(folder: Path) -> None:
    for content in ("first", "second", "third"):
        (folder / "taskorch.db").write_text(content)
        place.set_aside(folder / "taskorch.db")
    assert [path.read_text() for path in place.set_aside_files(folder)] == ["first", "second", "third"]


@pytest.mark.parametrize("empty", [True, False])
def test_a_wal_whose_database_is_gone_is_moved_aside(empty: bool, folder: Path) -> None:
    (folder / "taskorch.db-wal").write_text("committed last")
    if empty:
        (folder / "taskorch.db").touch()
    place.save_orphans(folder / "taskorch.db")
    [wal] = folder.glob("*-wal")
    assert (".corrupt-" in wal.name, wal.read_text()) == (True, "committed last")
    assert place.set_aside_files(folder) == [wal if not empty else wal.with_name(wal.name.removesuffix("-wal"))]


def test_a_wal_that_belongs_to_a_database_stays(folder: Path) -> None:
    (folder / "taskorch.db").write_text("x")
    (folder / "taskorch.db-wal").write_text("y")
    place.save_orphans(folder / "taskorch.db")
    assert sorted(os.listdir(folder)) == ["taskorch.db", "taskorch.db-wal"]
