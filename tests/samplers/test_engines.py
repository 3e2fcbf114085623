"""The register of engines: settings, doctor and start follow from the files in `samplers/engines/`."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from treegrpo_cli.config import SamplerConfig
from treegrpo_cli.doctor.engines import ENGINES
from treegrpo_cli.samplers import engines, named, names


def test_every_file_of_an_engine_registers_the_one_of_its_name_and_settings_know_just_these() -> None:
    files = {path.stem for path in Path(engines.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {*names()} == {"server", "transformers", "vllm"}
    assert [named(name).name for name in names()] == [*names()]
    offered = SamplerConfig.model_json_schema()["properties"]["engine"]["enum"]
    assert offered == ["auto", *names()]
    with pytest.raises(ValidationError, match="'auto', 'server', 'transformers' or 'vllm'"):
        SamplerConfig(engine="sglang")
    assert [name for name in names() if named(name).is_here] == [*ENGINES]


def test_to_ask_what_an_engine_can_do_loads_nothing_that_it_needs() -> None:
    code = (
        "import sys; from treegrpo_cli.samplers import named, names; [named(name) for name in names()]; "
        "print(sorted({'torch', 'vllm', 'transformers', 'httpx'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
