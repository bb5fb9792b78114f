"""Makes the golden files of this folder: what Hugging Face transformers says, for couplet to equal.

  models      tiny-bert/, tiny-distilbert/, tiny-bert-bin/: seeded checkpoints, a few hundred kB each
  edge_cases  edge_cases.jsonl, and edge_cases.MODEL.jsonl: token ids, token types and logits of every case
  pairs       pairs.MODEL.jsonl: token counts and logits of the quickstart's pairs
  activations activations.jsonl: logits of the tiny checkpoints under each name of an activation
  mrpc        mrpc.minilm-base.tsv: real BERT weights under a formula for a head, 300 rows of MRPC, numbers only

Needs the folder with models/minilm-base, models/minilm-mrpc and data/mrpc, which is not part of the repository:

  python -m venv .venv && . .venv/bin/activate
  pip install torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3 safetensors==0.8.0 numpy==2.4.6 pyarrow==26.0.1
  python tests/it/goldens/make_goldens.py --shared ../shared            # everything
  python tests/it/goldens/make_goldens.py --shared ../shared --only pairs

Every logit is that of a batch of one, without padding, in float32 on one CPU thread. The seeds are fixed: a second
run writes the same token ids and checkpoints, and logits equal to within the last decimal.
"""

import argparse
import json
import random
import shutil
from collections import OrderedDict
from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAIRS_MAX_LENGTH = 128
MRPC_ROWS = 300
ACTIVATIONS = ["gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "silu", "swish"]
ACTIVATED_CASES = ["one_word", "sentences", "capitals", "pair_just_fits"]


# --------------------------------------------------------------------------------------------------------------------
# The tiny checkpoints
# --------------------------------------------------------------------------------------------------------------------

# Not in the vocabulary of the uncased English BERT, but a cased tokenizer, or one that keeps accents, can meet them.
EXTRA_CHARACTERS = "éèüöñçİŞẞ한국어\u0301\u0308\ufe0f😀👍❤👩💻🏽🇩🇪𝐀𝑥𠮷\U0002b830"
OTHER_SCRIPTS = "ßøæıłəαβσςωабвияאבשابتمनककाกา한のにアンー…–—“”‘’€£°½²±≤→、。！ﬁ"


def tiny_vocab(shared: Path) -> list[str]:
    """About 800 entries of minilm-base's vocabulary, in an order of our own: specials, characters, then its words."""
    entries = (shared / "models/minilm-base/vocab.txt").read_text(encoding="utf-8").split("\n")
    ascii_characters = [chr(code) for code in range(0x21, 0x7F)]
    cjk_characters = [entry for entry in entries if len(entry) == 1 and "\u4e00" <= entry <= "\u9fff"][::6][:40]
    characters = list(dict.fromkeys([*ascii_characters, *cjk_characters, *OTHER_SCRIPTS, *EXTRA_CHARACTERS]))
    pieces = [form for character in characters for form in (character, "##" + character)]
    frequent = [entry for entry in entries[entries.index("the") :] if len(entry.removeprefix("##")) > 1]
    words = [entry for entry in frequent if not entry.startswith("##")][:250]
    suffixes = [entry for entry in frequent if entry.startswith("##")][:100]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *pieces, *words, *suffixes]))


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Leaves no parameter at its neutral value, so that a forgotten one shows in the logits.

    Small embeddings make the epsilon of the layer norm count, a large head makes tanh's approximation of GELU count.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            spread = 0.05 if "_embeddings." in name else 0.6 if name == "classifier.weight" else 0.2
            noise = spread * torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name.lower() and name.endswith(".weight")
            parameter.copy_(1 + noise if is_scale else noise)


def save(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def make_tiny_bert(vocab: list[str]) -> None:
    """Tokenizer from vocab.txt: there is no tokenizer.json."""
    folder = HERE / "tiny-bert"
    labels = ["contradiction", "neutral", "entailment"]
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        type_vocab_size=2,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    model = BertForSequenceClassification(config)
    randomise(model, seed=1)
    save(model, folder)
    (folder / "vocab.txt").write_text("".join(entry + "\n" for entry in vocab), encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "do_lower_case": True,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
            "model_max_length": 512,
            "tokenizer_class": "BertTokenizer",
        },
    )


def make_tiny_distilbert(vocab: list[str]) -> None:
    """Cased; tokenizer.json and no vocab.txt."""
    folder = HERE / "tiny-distilbert"
    labels = ["not_paraphrase", "paraphrase"]
    config = DistilBertConfig(
        vocab_size=len(vocab),
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=512,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    model = DistilBertForSequenceClassification(config)
    randomise(model, seed=2)
    save(model, folder)
    ids = {entry: index for index, entry in enumerate(vocab)}
    BertTokenizer(ids, do_lower_case=False, strip_accents=False, model_max_length=512).save_pretrained(folder)


def make_tiny_bert_bin() -> None:
    """tiny-bert as old checkpoints are: a zip of pickled tensors, LayerNorm.gamma and beta, a buffer of positions."""
    source, folder = HERE / "tiny-bert", HERE / "tiny-bert-bin"
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "vocab.txt"):
        shutil.copyfile(source / name, folder / name)
    current = BertForSequenceClassification.from_pretrained(source).state_dict()
    state = OrderedDict({"bert.embeddings.position_ids": torch.arange(512).expand((1, -1))})
    state._metadata = current._metadata  # pickled along, as in any state dict that was saved as it is
    for name, tensor in current.items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        state[name] = tensor
    torch.save(state, folder / "pytorch_model.bin")


def make_models(shared: Path) -> None:
    vocab = tiny_vocab(shared)
    make_tiny_bert(vocab)
    make_tiny_distilbert(vocab)
    make_tiny_bert_bin()


# --------------------------------------------------------------------------------------------------------------------
# The edge cases
# --------------------------------------------------------------------------------------------------------------------

# Each is one token for every model here, so a text of n of them is n tokens long.
PLAIN_WORDS = "the of and in to was he is as for on with that it his by at from her she you had an were but be".split()


def words(count: int) -> str:
    return " ".join(random.Random(count).choices(PLAIN_WORDS, k=count))


def edge_cases() -> list[dict]:
    """Name, text, text_pair, max_length (128 where none is given)."""
    cases = [
        # Lengths and truncation. Two texts leave room for max_length - 3 tokens, one text for max_length - 2.
        ("one_word", "house", None),
        ("one_character", "x", None),
        ("one_token_each", "yes", "no"),
        ("only_unknown", "\u2603", "\u2603"),
        ("single_just_fits", words(126), None),
        ("single_one_over", words(127), None),
        ("single_over_512", words(600), None, 512),
        ("single_over_16_cut_inside_a_word", "in the year of unbelievablenesses and incomprehensibilities", None, 16),
        ("pair_just_fits", words(60), words(65)),
        ("pair_one_over_first_longer", words(70), words(56)),
        ("pair_one_over_second_longer", words(56), words(70)),
        ("pair_one_over_almost_equal", words(63), words(63)),
        ("pair_excess_larger_than_difference", words(75), words(60)),
        ("both_long_128", words(150), words(140)),
        ("both_long_128_second_longer", words(140), words(150)),
        ("both_long_128_equal", words(141), words(141)),
        ("both_long_127", words(150), words(140), 127),
        ("both_long_512", words(400), words(390), 512),
        ("both_long_16", words(30), words(29), 16),
        ("both_long_16_second_longer", words(29), words(30), 16),
        ("both_long_16_equal", words(30), words(30), 16),
        ("both_long_17_equal", words(30), words(30), 17),
        ("only_first_long", words(200), words(10)),
        ("only_second_long", words(10), words(200)),
        ("only_first_long_512", words(600), words(11), 512),
        ("only_second_long_512", words(11), words(600), 512),
        ("second_exactly_half", words(200), words(62)),
        ("second_one_over_half", words(200), words(63)),
        ("room_for_two", words(5), words(6), 5),
        ("room_for_one", words(6), words(5), 4),
        # Ordinary pairs.
        (
            "sentences",
            "This research was consistent with his findings.",
            "His findings were compatible with this research.",
        ),
        (
            "sentences_swapped",
            "His findings were compatible with this research.",
            "This research was consistent with his findings.",
        ),
        ("identical", "He said it was over.", "He said it was over."),
        ("capitals", "THE NEW YORK TIMES", "iPhone McDonald eBay"),
        # Nothing, or nearly.
        ("empty_second", "the first is all there is", ""),
        ("empty_second_as_single", "the first is all there is", None),
        ("whitespace_second", "the first is all there is", " \t\n "),
        ("zero_width_second", "the first is all there is", "\u200b\ufeff"),
        ("zero_width_first", "\u200b", "the second is all there is"),
        ("leading_trailing_spaces", "   the world  ", "\n\n the\tworld\r\n"),
        # Control, format and unassigned characters.
        ("nul", "the\u0000 world of\u0000men", None),
        ("control_characters", "a\u0001b c\u001fd e\u007ff", "g\u0085h i\u009fj"),
        ("tabs_newlines", "the\tnew\nworld\r\nof\u000bmen\u000cand", "the\u2028new\u2029world"),
        ("spaces_of_all_kinds", "a\u00a0b\u1680c\u2003d\u202fe\u205ff\u3000g\u180eh", None),
        ("zero_width_space", "wo\u200brld of\u200cmen\u200dand\u2060so", None),
        ("byte_order_mark_inside", "\ufeffthe wo\ufeffrld", "the world\ufeff"),
        ("soft_hyphen", "con\u00adsis\u00adtent", "consistent"),
        ("replacement_character", "the wor\ufffdld \ufffd of", "\ufffd"),
        ("private_use", "the \ue000 wor\uf8ffld \U000f0000", None),
        ("unassigned_and_noncharacters", "a\u0378b c\uffffd e\U0010fffff g\U000e0080h", None),
        ("right_to_left_marks", "\u202bthe\u202c \u200fworld\u200e \u2067of\u2069 men", "\u061cthe"),
        # Scripts.
        ("chinese", "我们在北京学习中文。", "他说：“你好，世界！”"),
        ("chinese_in_english", "the 中国 city of北京in China", "三三"),
        ("rare_ideographs", "a𠮷b a\U0002b740b a\U0002b830b a\U0002ceb0b a\U00030000b a\u9fffb a豈b a\U0002f800b", None),
        ("japanese", "これはペンです。日本語のテスト", "ｶﾀｶﾅ パーティー ガ が"),
        ("korean", "한국어 문장입니다.", "한국 사람"),
        ("arabic", "هذا اختبار للغة العربية؟", "مُحَمَّد ٣٤٥"),
        ("hebrew", "שלום עולם", "שָׁלוֹם"),
        ("hindi_and_thai", "हिन्दी में लिखना", "ภาษาไทยไม่มีช่องว่าง"),
        ("russian", "Съешь ещё этих мягких булок", "Й й Ё ё"),
        ("greek_final_sigma", "ΟΔΥΣΣΕΥΣ Σ σας", "Ὀδυσσεύς"),
        ("accents_composed", "café naïve Ångström résumé über", "Tiếng Việt"),
        ("accents_decomposed", "cafe\u0301 nai\u0308ve A\u030angstro\u0308m re\u0301sume\u0301 u\u0308ber", None),
        ("accents_composed_against_decomposed", "é ñ", "e\u0301 n\u0303"),
        ("accents_piled_up", "Z\u0351\u036b\u0343a\u0329\u0321l\u0348g\u0332o\u031e \u0301 x", "\u0301"),
        ("turkish", "İstanbul'da ISPARTA ılık iğne", "I İ ı i"),
        ("german", "Die Straße, STRASSE, Fuß, GROẞ, Ärger", "Übermäßig"),
        ("ligatures_and_full_width", "ﬁne ﬂow œuvre Ǆ ŉ", "ＡＢＣ ａｂｃ １２３！？"),
        # Symbols.
        ("emoji", "this is 😀 good👍", "❤️ ☺ 🎉🎉"),
        ("emoji_joined", "👩‍💻 👨‍👩‍👧‍👦 🏳️‍🌈", "👩💻"),
        ("emoji_skin_tones", "👍🏽 👋🏿", "👍 🏽"),
        ("emoji_flags", "🇩🇪🇯🇵 1️⃣ #️⃣", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"),
        ("emoji_of_late_unicode", "a🥲b a🫠b a🫨b a🫩b", None),
        ("mathematics", "𝐀𝐁𝐂 𝑥² ≤ ½ → ∑ ± √2", "E = m·c² ∀x∈ℝ"),
        ("currency", "$5.00 €10 £3 ¥100 ₹50 50¢", "5,00 €"),
        ("numbers", "1,234,567.89 1.234.567,89 1 234 567 1'234", "3.14e-10 0x1F 12:30 1/2 90% -5 +7"),
        ("quotes", "\"It's\" 'don''t' “he” ‘she’ «they» „we“", "rock'n'roll ''`` `it`"),
        ("dashes", "state-of-the-art – well — so --- it‑is", "mother-in-law"),
        ("punctuation_runs", "what?!?!?!... no!!!!!!!!!!", "................................ ----- *** ==== ~~~~ ||"),
        ("punctuation_of_late_unicode", "a\u2e52b a\u2e5db a\u1b7db a\u061db a\U00010f86b", None),
        ("ascii_symbols", "a$b+c<d=e>f^g`h|i~j", "a_b@c#d%e&f*g"),
        # Text that is not prose.
        ("url", "see https://www.example.com/a/b.html?x=1&y=%20#top", "mail john.doe+tag@example.org"),
        ("html", '<p class="x">Tom &amp; Jerry<br/>&nbsp;</p>', "<!-- no --><script>1<2</script>"),
        ("code", "if (x[i] != '\\n') { return f(x, i++); }", "C:\\temp\\new.txt"),
        ("special_tokens_in_text", "the [SEP] world [MASK] of [CLS]", "[SEP][SEP] a[MASK]b"),
        ("pad_and_unk_in_text", "the [PAD] world [UNK] of", "[PAD]"),
        ("almost_special_tokens", "[sep] [Mask] [ CLS ] [SEP", "[[SEP]] <s> ##ing ## #"),
        ("only_special_tokens", "[SEP]", "[CLS]"),
        # WordPiece gives up on words of more than 100 characters, counted after normalization.
        ("word_of_100", "a" * 100, "ab" * 50),
        ("word_of_101", "a" * 101, "of " + "ab" * 60),
        ("word_of_300", "the " + "x" * 300 + " of", "x" * 300),
        ("word_of_100_with_accents", "e\u0301" * 100, "é" * 101),
        ("punctuation_of_300", "the " + "-" * 300, "a-" * 80, 512),
    ]
    keys = ("name", "text", "text_pair", "max_length")
    return [dict(zip(keys, (*case, 128)[:4])) for case in cases]


# --------------------------------------------------------------------------------------------------------------------
# What transformers says
# --------------------------------------------------------------------------------------------------------------------


class Reference:
    """A checkpoint and its tokenizer, as transformers loads them."""

    def __init__(self, folder: Path, model: torch.nn.Module | None = None):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = model or AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()
        self.has_token_types = self.model.config.model_type == "bert"

    def score(self, text: str, text_pair: str | None, max_length: int) -> tuple[list[int], list[int], list[float]]:
        """Token ids, token types, and logits rounded to 7 decimals."""
        # Lists of one, because the tokenizer drops an empty text_pair that is not in a list.
        encoding = self.tokenizer(
            [text],
            None if text_pair is None else [text_pair],
            truncation="longest_first",
            max_length=max_length,
            return_token_type_ids=True,
            return_tensors="pt",
        )
        token_types = encoding["token_type_ids"]
        if not self.has_token_types:
            del encoding["token_type_ids"]
        with torch.inference_mode():
            logits = self.model(**encoding).logits
        return (
            encoding["input_ids"][0].tolist(),
            token_types[0].tolist(),
            [round(logit, 7) for logit in logits[0].tolist()],
        )


def reference_models(shared: Path) -> dict[str, Reference]:
    return {
        "tiny-bert": Reference(HERE / "tiny-bert"),
        "tiny-distilbert": Reference(HERE / "tiny-distilbert"),
        "minilm-mrpc": Reference(shared / "models/minilm-mrpc"),
    }


def minilm_base_with_head(shared: Path) -> Reference:
    """minilm-base has the pooler of BERT but no head: weight[c][i] = 0.05 sin(0.1 (384 c + i) + 1), bias ±0.1."""
    folder = shared / "models/minilm-base"
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    weight = 0.05 * torch.sin(0.1 * torch.arange(2 * 384, dtype=torch.float64) + 1)
    with torch.no_grad():
        model.classifier.weight.copy_(weight.view(2, 384))
        model.classifier.bias.copy_(torch.tensor([0.1, -0.1]))
    return Reference(folder, model)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """In ASCII, so that no editor or pager trips over the texts."""
    lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="ascii")


def make_edge_cases(shared: Path) -> None:
    cases = edge_cases()
    write_jsonl(HERE / "edge_cases.jsonl", cases)
    for model_name, reference in reference_models(shared).items():
        rows = []
        for case in cases:
            input_ids, token_type_ids, logits = reference.score(case["text"], case["text_pair"], case["max_length"])
            rows.append(
                {"name": case["name"], "input_ids": input_ids, "token_type_ids": token_type_ids, "logits": logits}
            )
        write_jsonl(HERE / f"edge_cases.{model_name}.jsonl", rows)


def make_pairs(shared: Path, parquet: Path) -> None:
    """Leaves out the rows that couplet rejects: those with a NULL, or an empty first sentence."""
    pairs = pq.read_table(parquet, columns=["id", "sentence1", "sentence2"]).to_pylist()
    pairs = [pair for pair in pairs if pair["sentence1"] and pair["sentence2"] is not None]
    for model_name, reference in reference_models(shared).items():
        rows = []
        for pair in pairs:
            input_ids, _, logits = reference.score(pair["sentence1"], pair["sentence2"], PAIRS_MAX_LENGTH)
            rows.append({"id": pair["id"], "tokens": len(input_ids), "logits": logits})
        write_jsonl(HERE / f"pairs.{model_name}.jsonl", rows)


def make_activations() -> None:
    """The same weights under another activation, which `config.json` alone names."""
    cases = [case for case in edge_cases() if case["name"] in ACTIVATED_CASES]
    rows = []
    for model_name, key in [("tiny-bert", "hidden_act"), ("tiny-distilbert", "activation")]:
        folder = HERE / model_name
        for activation in ACTIVATIONS:
            config = AutoConfig.from_pretrained(folder, **{key: activation})
            model = AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32)
            reference = Reference(folder, model)
            for case in cases:
                _, _, logits = reference.score(case["text"], case["text_pair"], case["max_length"])
                rows.append({"model": model_name, "activation": activation, "name": case["name"], "logits": logits})
    write_jsonl(HERE / "activations.jsonl", rows)


def make_mrpc(shared: Path) -> None:
    """Row numbers, token counts and logits only: the licence of MRPC does not let its texts be shipped here."""
    reference = minilm_base_with_head(shared)
    content = (shared / "data/mrpc/msr_paraphrase_train.txt").read_text(encoding="utf-8-sig")
    table = [line.split("\t") for line in content.split("\n")[1 : MRPC_ROWS + 1]]
    lines = ["row\ttokens\tlogit_0\tlogit_1\n"]
    for row, (_, _, _, first, second) in enumerate(table):
        input_ids, _, logits = reference.score(first, second, PAIRS_MAX_LENGTH)
        lines.append(f"{row}\t{len(input_ids)}\t{logits[0]:.7f}\t{logits[1]:.7f}\n")
    (HERE / "mrpc.minilm-base.tsv").write_text("".join(lines), encoding="ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--pairs", type=Path, default=ROOT / "pipelines/quickstart/pairs.parquet")
    parts = {
        "models": lambda: make_models(arguments.shared),
        "edge_cases": lambda: make_edge_cases(arguments.shared),
        "pairs": lambda: make_pairs(arguments.shared, arguments.pairs),
        "activations": make_activations,
        "mrpc": lambda: make_mrpc(arguments.shared),
    }
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), metavar="PART", help=", ".join(parts))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.only:
        parts[part]()


if __name__ == "__main__":
    main()
