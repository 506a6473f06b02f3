"""Every choice of data_remote: what one clone pushes, another pulls, from a real folder or a real server on this machine."""

import base64
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest
from conftest import OPTIONS
from environments import environment, npm_package, run

pytestmark = pytest.mark.all
CONTENT = b"amount,label\n1.5,yes\n"
ACCOUNT, KEY = "somebody", base64.b64encode(os.urandom(32)).decode()  # Azurite takes whatever its environment names
TOOLS = ("dvc[s3,gs,azure]>=3.67", "moto[server]>=5", "gcp-storage-emulator")


@contextmanager
def server(command: list[str], port: int, log: Path) -> Iterator[None]:
    """The program while the block runs; ended by its own id."""
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            deadline = monotonic() + 60
            while not listens(port):
                assert process.poll() is None and monotonic() < deadline, log.read_text()
                sleep(0.1)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def local(tools: Path, slug: str, folder: Path) -> Iterator[tuple[Mapping[str, str], list[list[str]]]]:
    """A folder beside the project."""
    yield {}, [["url", str(folder / "remote")]]


@contextmanager
def s3(tools: Path, slug: str, folder: Path) -> Iterator[tuple[Mapping[str, str], list[list[str]]]]:
    """moto's server."""
    port = free_port()
    with server([str(tools / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], port, folder / "server.log"):
        url = f"http://127.0.0.1:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{url}/{slug}", method="PUT"), timeout=10).close()
        yield {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}, [["endpointurl", url]]


@contextmanager
def gcs(tools: Path, slug: str, folder: Path) -> Iterator[tuple[Mapping[str, str], list[list[str]]]]:
    """gcp-storage-emulator."""
    port = free_port()
    program = [str(tools / "gcp-storage-emulator"), "start", "--host=127.0.0.1", f"--port={port}", "--in-memory", f"--default-bucket={slug}"]
    with server(program, port, folder / "server.log"):
        # gcsfs asks a real bucket for its kind by gRPC, which the emulator does not speak; then it would wait for minutes.
        settings = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        yield settings, [["allow_anonymous_login", "true"]]


@contextmanager
def azure(tools: Path, slug: str, folder: Path) -> Iterator[tuple[Mapping[str, str], list[list[str]]]]:
    """Azurite."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed, so Azurite cannot be fetched: azure was not tried")
    port = free_port()
    program = [str(npm_package("azurite") / "azurite-blob"), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    with server(["env", f"AZURITE_ACCOUNTS={ACCOUNT}:{KEY}", *program, "--skipApiVersionCheck", "--silent"], port, folder / "server.log"):
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        account = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
        code = f"from azure.storage.blob import BlobServiceClient as S; S.from_connection_string({account!r}).create_container({slug!r})"
        run([str(tools / "python"), "-c", code])
        yield {}, [["connection_string", account]]


REMOTES = {"local": local, "s3": s3, "gcs": gcs, "azure": azure}


@pytest.mark.parametrize("choice", OPTIONS["data_remote"])
def test_what_one_clone_pushes_another_pulls(choice: str, bake_into: Callable[..., Path], tmp_path: Path) -> None:
    project = bake_into(tmp_path, data_remote=choice)
    tools = environment("remotes", *TOOLS)
    dvc = [str(tools / "python"), "-m", "dvc"]
    with REMOTES[choice](tools, project.name, tmp_path) as (settings, more):
        more_env = {**settings, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
        run(["git", "init", "--quiet"], project)
        for key, value in more:
            run([*dvc, "remote", "modify", "--local", choice, key, value], project, **more_env)
        raw = project / "data" / "raw" / "table.csv"
        raw.parent.mkdir(parents=True)
        raw.write_bytes(CONTENT)
        run([*dvc, "add", "--quiet", "data/raw"], project, **more_env)
        pushed = run([*dvc, "push", "data/raw.dvc"], project, **more_env)
        assert "2 files pushed" in pushed, pushed
        clone = tmp_path / "clone"
        shutil.copytree(project, clone, ignore=shutil.ignore_patterns("cache", "raw", "tmp"))
        run([*dvc, "pull", "data/raw.dvc"], clone, **more_env)
        assert (clone / "data" / "raw" / "table.csv").read_bytes() == CONTENT
        again = run([*dvc, "push", "data/raw.dvc"], clone, **more_env)
        assert "Everything is up to date" in again, again


def test_every_choice_has_a_real_endpoint() -> None:
    assert REMOTES.keys() >= {*OPTIONS["data_remote"]}
