"""How every icon looks: a colour, and strokes of white on it. `draw` turns a design into a PNG.

Strokes are written on a grid of 24 by 24, y downwards: paths divided by `;`, each a row of `x,y` points in line.
`(cx,cy,rx,ry,from,to)` in a row goes along an ellipse, in degrees clockwise from the right; `@x,y,r` is a filled disc.
Letters have a grid of their own: 10 high, as wide as they need.
"""

from typing import NamedTuple


class Design(NamedTuple):
    """`monogram` is one or two capital letters; `strokes` is used where there is none."""

    name: str
    color: str
    monogram: str = ""
    strokes: str = ""


LETTERS: dict[str, str] = {
    "A": "0,10 4,0 8,10; 1.4,6.6 6.6,6.6",
    "B": "0,5 0,0 3.2,0 (3.2,2.5,2.6,2.5,-90,90) 0,5 0,10 3.5,10 (3.5,7.5,2.9,2.5,90,-90) 0,5",
    "C": "(5,5,5,5,-48,-312)",
    "D": "0,0 2.8,0 (2.8,5,5,5,-90,90) 0,10 0,0",
    "E": "5.8,0 0,0 0,10 5.8,10; 0,5 5,5",
    "F": "5.8,0 0,0 0,10; 0,5 5,5",
    "G": "(5,5,5,5,-48,-360) 5.6,5",
    "H": "0,0 0,10; 7,0 7,10; 0,5 7,5",
    "I": "0,0 0,10",
    "L": "0,0 0,10 5.6,10",
    "M": "0,10 0,0 4.4,6.4 8.8,0 8.8,10",
    "N": "0,10 0,0 7.2,10 7.2,0",
    "O": "(5,5,5,5,0,360)",
    "P": "0,10 0,0 3.6,0 (3.6,2.9,2.9,2.9,-90,90) 0,5.8",
    "Q": "(5,5,5,5,0,360); 6.4,6.9 9.4,10.2",
    "R": "0,10 0,0 3.6,0 (3.6,2.8,2.8,2.8,-90,90) 0,5.6; 3.4,5.6 6.8,10",
    "S": "(3.3,2.6,2.9,2.6,-30,-270) (3.3,7.6,3.2,2.4,-90,150)",
    "T": "0,0 7.4,0; 3.7,0 3.7,10",
    "V": "0,0 4,10 8,0",
    "W": "0,0 2.6,10 5.2,2.6 7.8,10 10.4,0",
    "X": "0,0 7,10; 7,0 0,10",
    "Z": "0,0 6.8,0 0,10 6.8,10",
}

_PROVIDERS = {
    "hugging_face": Design("Hugging Face", "#B7791F", "HF"),
    "url": Design(
        "URL",
        "#2B6CB0",
        strokes="10.2,13.8 13.8,10.2; 11,8.6 13.2,6.4 (15.4,8.6,3.1,3.1,-135,45) 15.4,13; "
        "13,15.4 10.8,17.6 (8.6,15.4,3.1,3.1,45,225) 8.6,11",
    ),
    "disk": Design(
        "Disk",
        "#4A5568",
        strokes="5,12.5 7.2,7 16.8,7 19,12.5 19,17 5,17 5,12.5 19,12.5; @12.9,14.8,0.95; @15.9,14.8,0.95",
    ),
    "openai": Design("OpenAI", "#0F766E", "OA"),
    "anthropic": Design("Anthropic", "#C2562D", "AN"),
    "gemini": Design("Google Gemini", "#4C51BF", "GE"),
    "vertex_ai": Design("Google Vertex AI", "#3178C6", "VX"),
    "azure": Design("Azure OpenAI", "#1D6FA5", "AZ"),
    "bedrock": Design("AWS Bedrock", "#2F855A", "BR"),
    "mistral": Design("Mistral AI", "#D2691E", "MI"),
    "cohere": Design("Cohere", "#97466B", "CO"),
    "groq": Design("Groq", "#B83232", "GQ"),
    "together_ai": Design("Together AI", "#5B5BD6", "TO"),
    "fireworks_ai": Design("Fireworks AI", "#8B3FC7", "FW"),
    "deepseek": Design("DeepSeek", "#3B5BDB", "DS"),
    "xai": Design("xAI", "#2D3748", "XA"),
    "perplexity": Design("Perplexity", "#157F8C", "PX"),
    "openrouter": Design("OpenRouter", "#6B5FB5", "OR"),
    "nvidia_nim": Design("NVIDIA NIM", "#5A8A1F", "NM"),
    "huggingface": Design("Hugging Face Inference", "#A3700E", "HI"),
    "replicate": Design("Replicate", "#3F3F46", "RE"),
    "cerebras": Design("Cerebras", "#C4472F", "CE"),
    "moonshot": Design("Moonshot AI", "#1E3A8A", "MO"),
    "voyage": Design("Voyage AI", "#0E7C66", "VO"),
    "elevenlabs": Design("ElevenLabs", "#52525B", "EL"),
    "deepgram": Design("Deepgram", "#128064", "DG"),
    "ollama": Design("Ollama", "#57606A", "OL"),
    "openai_compatible": Design("OpenAI-compatible", "#4F7A8C", "OC"),
}

_MODELS = {
    "model": Design(
        "Model",
        "#4C51BF",
        strokes="12,4.6 18.4,8.3 18.4,15.7 12,19.4 5.6,15.7 5.6,8.3 12,4.6; 5.6,8.3 12,12 18.4,8.3; 12,12 12,19.4",
    ),
    "chat": Design(
        "Chat",
        "#2563EB",
        strokes="7.5,6 16.5,6 (16.5,8.5,2.5,2.5,-90,0) 19,13 (16.5,13,2.5,2.5,0,90) 11.5,15.5 8,18.8 8,15.5 7.5,15.5 "
        "(7.5,13,2.5,2.5,90,180) 5,8.5 (7.5,8.5,2.5,2.5,180,270); @8.7,10.8,1; @12,10.8,1; @15.3,10.8,1",
    ),
    "vision": Design(
        "Vision", "#7C3AED", strokes="4.2,12 (12,16.2,8.85,8.85,-152,-28) 19.8,12 (12,7.8,8.85,8.85,28,152); @12,12,2.5"
    ),
    "image": Design(
        "Image",
        "#BE185D",
        strokes="5.2,6 18.8,6 18.8,18 5.2,18 5.2,6 18.8,6; 5.6,16.4 10,11.4 13.4,15 15.4,13 18.6,16.2; @15.2,9.4,1.3",
    ),
    "embedding": Design(
        "Embedding",
        "#0E7490",
        strokes="5.6,5 5.6,18.4 19,18.4; @9.2,14.4,1.15; @11.4,10.2,1.15; @15.2,13.2,1.15; @16.6,7.2,1.15; @9,7.4,1.15",
    ),
    "speech": Design(
        "Text to speech",
        "#B45309",
        strokes="5,10 5,14 8,14 12,17.4 12,6.6 8,10 5,10 5,14; (12.4,12,3.2,3.2,-50,50); (12.4,12,6.4,6.4,-50,50)",
    ),
    "transcription": Design(
        "Speech to text",
        "#047857",
        strokes="9.4,11 9.4,7.4 (12,7.4,2.6,2.6,180,360) 14.6,11 (12,11,2.6,2.6,0,180); "
        "6.6,11 (12,11,5.4,5.4,180,0); 12,16.4 12,19.2; 9.4,19.2 14.6,19.2",
    ),
    "audio": Design(
        "Audio", "#9D174D", strokes="5,10.4 5,13.6; 8.5,7.6 8.5,16.4; 12,5 12,19; 15.5,8.6 15.5,15.4; 19,10.4 19,13.6"
    ),
    "omni": Design(
        "All modalities",
        "#6D28D9",
        strokes="(12,9.1,4.1,4.1,0,360); (9.1,14.4,4.1,4.1,0,360); (14.9,14.4,4.1,4.1,0,360)",
    ),
    "code": Design("Code", "#15803D", strokes="8.4,7.6 4.4,12 8.4,16.4; 15.6,7.6 19.6,12 15.6,16.4; 13.4,6 10.6,18"),
    "reasoning": Design(
        "Reasoning",
        "#A16207",
        strokes="9.6,15.6 9.6,14.4 (12,9.8,5,5,123,417) 14.4,15.6 9.6,15.6; 10.2,18.6 13.8,18.6",
    ),
    "document": Design(
        "Document",
        "#475569",
        strokes="13.4,4.8 7,4.8 7,19.2 17,19.2 17,8.4 13.4,4.8 13.4,8.4 17,8.4; 9.8,12 14.2,12; 9.8,15.4 14.2,15.4",
    ),
}

_CLUSTERS = {
    "cluster": Design(
        "Cluster",
        "#1D4ED8",
        strokes="12,8.2 12,12 7.4,15.2; 12,12 16.6,15.2; @12,12,1.5; (12,6.2,2,2,0,360); "
        "(6,16.4,2,2,0,360); (18,16.4,2,2,0,360)",
    ),
    "machine": Design(
        "This machine", "#334155", strokes="6.2,6.4 17.8,6.4 17.8,15 6.2,15 6.2,6.4 17.8,6.4; 4,18 20,18"
    ),
    "rack": Design(
        "Servers",
        "#0F766E",
        strokes="5.4,5 18.6,5 18.6,9.2 5.4,9.2 5.4,5 18.6,5; 5.4,14.8 18.6,14.8 18.6,19 5.4,19 5.4,14.8 18.6,14.8; "
        "5.4,9.9 18.6,9.9 18.6,14.1 5.4,14.1 5.4,9.9; @8.2,7.1,0.9; @8.2,12,0.9; @8.2,16.9,0.9",
    ),
    "gpu": Design(
        "Accelerators",
        "#4D7C0F",
        strokes="7.2,7.2 16.8,7.2 16.8,16.8 7.2,16.8 7.2,7.2 16.8,7.2; "
        "10.3,10.3 13.7,10.3 13.7,13.7 10.3,13.7 10.3,10.3; "
        "9.4,4.4 9.4,7; 14.6,4.4 14.6,7; 9.4,17 9.4,19.6; 14.6,17 14.6,19.6; "
        "4.4,9.4 7,9.4; 4.4,14.6 7,14.6; 17,9.4 19.6,9.4; 17,14.6 19.6,14.6",
    ),
    "cloud": Design(
        "Cloud",
        "#0369A1",
        strokes="8,17.4 (8,13.9,3.5,3.5,90,255) (11.6,10.4,4.4,4.4,190,345) (16.2,13.8,3.6,3.6,-80,90) 8,17.4",
    ),
    "edge": Design(
        "Edge",
        "#7E22CE",
        strokes="@12,15.4,1.6; (12,15.4,4.6,4.6,-140,-40); (12,15.4,8.2,8.2,-140,-40)",
    ),
}

DESIGNS: dict[str, dict[str, Design]] = {"providers": _PROVIDERS, "models": _MODELS, "clusters": _CLUSTERS}
