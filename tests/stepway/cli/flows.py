"""Files of flows that the tests of the command line use."""

from pathlib import Path

MEASURE = """\
name: {name}
input:
  - name: text
    type: text
  - {{name: least, type: number, default: 3}}
tasks:
  - ref: size
    type: Text.Size
    input: {{text: "{{{{input.text}}}}"}}
  - ref: cut
    type: text.truncate
    condition: {{left: "{{{{refs.size.output.characters}}}}", op: gt, right: "{{{{input.least}}}}"}}
    input: {{text: "{{{{input.text}}}}", max_characters: {most}}}
output:
  - {{name: characters, type: number, value: "{{{{refs.size.output.characters}}}}"}}
"""
ASK = """\
{"title": "Ask somebody", "tasks": [
  {"name": "ask", "type": "flow.wait_event", "inputs": {"name": "approval", "message": "Go on?"}},
  {"name": "read", "type": "json.transform",
   "inputs": {"value": "{{tasks.ask.outputs.data}}", "expression": "abs(amount)"}}],
 "outputs": [{"name": "result", "type": "any", "value": "{{tasks.read.outputs.result}}"}]}
"""


def measure(folder: Path, name: str, most: int = 5) -> Path:
    file = folder / "measure.yaml"
    file.write_text(MEASURE.format(name=name, most=most))
    return file


def ask(folder: Path) -> Path:
    file = folder / "ask.json"
    file.write_text(ASK)
    return file
