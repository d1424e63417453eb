"""What is said of a host, and what its settings are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd import Far, an_sshd, machine_at

from pg_backup_tasks import hosts
from pg_backup_tasks.errors import Refused
from pg_backup_tasks.settings import OF_A_HOST, Settings


@pytest.fixture(scope="module")
def far() -> Iterator[Far]:
    with an_sshd() as sshd, machine_at(sshd) as far:
        yield far


def test_what_has_no_entry_is_what_openssh_knows() -> None:
    host = hosts.find(Settings(), "deploy@db.example")
    assert (host.ssh, host.project, host.protected) == ("deploy@db.example", "", False)


@pytest.mark.parametrize(
    ("name", "protected"),
    [("prod", True), ("deploy@db1.example", True), ("root@alias", True), ("db1.example:23", False), ("db2", False)],
)
def test_a_protected_host_is_so_by_every_name(tmp_path: Path, name: str, protected: bool) -> None:
    (tmp_path / "config").write_text("Host alias\n  HostName db1.example\n")
    known = Settings(
        ssh_config=str(tmp_path / "config"),
        hosts={"prod": {"ssh": "deploy@db1.example", "protected": True}, "db2": {"protected": False}},
    )
    assert hosts.watched(known, hosts.find(known, name)).protected is protected


def test_the_folder_is_the_one_it_has_here_below_the_home_there(far: Far) -> None:
    (Path(far.home) / "work" / "my bar").mkdir(parents=True, exist_ok=True)
    near = Settings(root=str(Path.home() / "work" / "my bar"))
    there = hosts.settings_there(near, hosts.find(near, "far"), far)
    assert there.root == f"{far.home}/work/my bar"
    assert there.under_root(there.backups) == f"{far.home}/work/my bar/backups/postgres"


@pytest.mark.parametrize("project", ["~/work", "work", "/tmp"])
def test_the_folder_as_it_is_said(far: Far, project: str) -> None:
    (Path(far.home) / "work").mkdir(exist_ok=True)
    near = Settings(root="/nowhere", hosts={"far": {"project": project}})
    there = hosts.settings_there(near, hosts.find(near, "far"), far)
    assert there.root == ("/tmp" if project == "/tmp" else f"{far.home}/work")


def test_a_folder_that_is_not_there(far: Far) -> None:
    near = Settings(root="/no/such/folder")
    with pytest.raises(Refused, match="There is no folder /no/such/folder on far"):
        hosts.settings_there(near, hosts.find(near, "far"), far)


def test_paths_of_this_machine_are_not_taken_there(far: Far) -> None:
    near = Settings(
        root="/tmp",
        backups="/mnt/here",
        env_file="~/here/.env",
        pg_bin="/opt/here",
        lock_timeout=5,
        source="environment",
    )
    there = hosts.settings_there(near, hosts.find(near, "far"), far)
    usual = Settings()
    assert (there.backups, there.env_file, there.pg_bin) == (usual.backups, usual.env_file, usual.pg_bin)
    assert (there.lock_timeout, there.source) == (5, "file")


def test_what_is_said_of_a_host_goes_over_all_else(far: Far) -> None:
    said = {"project": "/tmp", "backups": "~/dumps", "env_file": ".env", "jobs": 7, "migrate": "make migrate"}
    near = Settings(root="/tmp", backups="var/dumps", jobs=3, hosts={"far": said})
    there = hosts.settings_there(near, hosts.find(near, "far"), far)
    assert (there.backups, there.env_file) == (f"{far.home}/dumps", ".env")
    assert (there.jobs, there.migrate) == (7, "make migrate")


def test_the_readme_has_what_can_be_said_of_a_host() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    table = readme.partition("| of a host | meaning |")[2].partition("\n\n")[0]
    assert [name for name in ("ssh", "project", "protected", *OF_A_HOST) if f"`{name}`" not in table] == []
