import subprocess
import sys

SCRIPT = """
import sys
from clip_common.backbones import load_language
from edgeglass.config import AdapterConfig
from edgeglass.models.vlm.qwen import add_adapters

model = load_language("tiny").model
add_adapters(model, AdapterConfig(r=2))
assert "bitsandbytes" in sys.modules
assert {name.split(".")[-3] for name, part in model.named_parameters() if part.requires_grad} == {"lora_A", "lora_B"}
"""


def test_adding_adapters_prints_nothing():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
