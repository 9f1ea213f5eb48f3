"""LiteLLM's proxy, the peer: from PyPI, in a virtual environment of its own, one worker, no database, no telemetry.

Everything optional is off and its own advice for production is followed, so that the comparison is with its best.
"""

import os
import secrets
import subprocess
import sys
import venv
from pathlib import Path

from bench.contestants import Contestant
from bench.processes import BenchFailed, Cores
from bench.wire import MODEL, PACED_MODEL

ENVIRONMENT = Path(__file__).resolve().parent / ".venv-litellm"
REQUIREMENT = "litellm[proxy]"
INSTALL_TIMEOUT_S = 1200.0
START_TIMEOUT_S = 180.0
PACED_STREAMS_MAX = 100

_MODEL = """\
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: {upstream_url}/v1
      api_key: none
"""
_SETTINGS = """\
litellm_settings:
  telemetry: false
  num_retries: 0
general_settings:
  master_key: {key}
"""


def installed_version() -> str | None:
    """LiteLLM's version, None when the environment is missing or half made."""
    names = sorted((ENVIRONMENT / "lib").glob("python*/site-packages/litellm-*.dist-info"))
    if not names or not (ENVIRONMENT / "bin" / "litellm").exists():
        return None
    return names[-1].name.removeprefix("litellm-").removesuffix(".dist-info")


def install() -> str:
    """Makes the environment once; returns the version. It stays for the next run, so versions change only by hand."""
    version = installed_version()
    if version is not None:
        return version
    print(f"installing {REQUIREMENT} into {ENVIRONMENT.name}, once; this takes minutes", file=sys.stderr)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run([*pip, REQUIREMENT], capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S)
    version = installed_version()
    if done.returncode != 0 or version is None:
        raise BenchFailed(f"pip could not install {REQUIREMENT}:\n{done.stderr[-2000:]}")
    return version


def litellm(*, port: int, upstream_url: str, cores: Cores, scratch: Path) -> Contestant:
    """Writes the configuration and says how to start the proxy."""
    folder = scratch / "litellm"
    folder.mkdir()
    key = f"sk-{secrets.token_hex(16)}"
    config = folder / "config.yaml"
    config.write_text(
        "model_list:\n"
        + "".join(_MODEL.format(model=model, upstream_url=upstream_url) for model in (MODEL, PACED_MODEL))
        + _SETTINGS.format(key=key)
    )
    command = [str(ENVIRONMENT / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    return Contestant(
        name="litellm",
        port=port,
        argv=[*command, "--port", str(port), "--num_workers", "1", "--telemetry", "False"],
        cores=cores.server,
        log_path=folder / "serve.log",
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("LITELLM_")},
            "PATH": f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_TELEMETRY": "False",
            # Else it fetches its price list at start-up; the benchmark stays on loopback.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_PROXY": "127.0.0.1",
        },
        headers={"Authorization": f"Bearer {key}"},
        paced_streams_max=PACED_STREAMS_MAX,
        stream_time_factor=3,
        start_timeout_s=START_TIMEOUT_S,
        stop_code=-15,  # as uvicorn ends
        must_succeed=False,
    )
