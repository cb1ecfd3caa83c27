"""What a model takes and gives, in the platform's words, from what its author says or its architecture tells."""

from typing import Any

from services.model.metadata.documents import mapping

BY_TAG = {
    "text-generation": "llm",
    "text2text-generation": "llm",
    "conversational": "llm",
    "summarization": "llm",
    "translation": "llm",
    "image-text-to-text": "mllm",
    "image-to-text": "mllm",
    "visual-question-answering": "mllm",
    "document-question-answering": "mllm",
    "video-text-to-text": "mllm",
    "text-to-image": "image",
    "image-to-image": "image",
    "image-text-to-image": "image",
    "unconditional-image-generation": "image",
    "feature-extraction": "embedding",
    "sentence-similarity": "embedding",
    "image-feature-extraction": "embedding",
    "text-to-speech": "text_to_speech",
    "text-to-audio": "text_to_speech",
    "automatic-speech-recognition": "speech_to_text",
    "audio-text-to-text": "audio_llm",
    "any-to-any": "omni",
}
_EMBEDDING_TYPES = frozenset(
    {
        "bert",
        "nomic-bert",
        "nomic_bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "gemma-embedding",
        "roberta",
        "xlm-roberta",
        "xlm_roberta",
        "distilbert",
        "mpnet",
        "modernbert",
        "modern-bert",
        "neo-bert",
        "electra",
        "deberta",
        "deberta-v2",
        "clip",
        "siglip",
        "new",
    }
)
_SPEECH_TO_TEXT = frozenset(["whisper", "wav2vec2", "hubert", "moonshine", "speech_to_text", "parakeet_ctc"])
_TEXT_TO_SPEECH = frozenset(
    ["wavtokenizer-dec", "vits", "speecht5", "bark", "fastspeech2_conformer", "parler_tts", "csm", "dia"]
)
_IMAGE = frozenset(["flux", "sd1", "sd2", "sd3", "sdxl", "stable-diffusion", "lumina2", "wan"])


def of_tag(tag: str | None) -> str | None:
    return BY_TAG.get(tag or "")


def of_configuration(config: dict[str, Any]) -> str | None:
    """By the parts that config.json describes and the class that it names."""
    kind = str(config.get("model_type", "")).lower()
    declared = config.get("architectures")
    name = str(declared[0]) if isinstance(declared, list) and declared else ""
    if kind in _SPEECH_TO_TEXT or "SpeechSeq2Seq" in name or name.endswith("ForCTC"):
        return "speech_to_text"
    if kind in _TEXT_TO_SPEECH or "TextToSpeech" in name or "TextToWaveform" in name:
        return "text_to_speech"
    parts = {**config, **mapping(config.get("thinker_config"))}
    sees, hears = "vision_config" in parts, "audio_config" in parts
    if "talker_config" in config or "Omni" in name or (sees and hears):
        return "omni"
    if sees and kind not in _EMBEDDING_TYPES:
        return "mllm"
    if hears:
        return "audio_llm"
    if kind in _EMBEDDING_TYPES:
        return "embedding"
    if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return "llm"
    return None


def of_gguf(architecture: str, *, pooled: bool, projector: bool) -> str:
    """By the name that llama.cpp gives the architecture. `projector`: a part for pictures or sound lies beside it."""
    if architecture in _TEXT_TO_SPEECH:
        return "text_to_speech"
    if architecture in _SPEECH_TO_TEXT:
        return "speech_to_text"
    if architecture in _IMAGE:
        return "image"
    if architecture in _EMBEDDING_TYPES or architecture.endswith("encoder") or pooled:
        return "embedding"
    return "mllm" if projector else "llm"
