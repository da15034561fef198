"""Rendering: ids and masks against the published encodings, and by the template's own words."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tamis.models.render import Renderer, tokenizer_fingerprint
from tamis.models.spans import Refused
from tests.conftest import shared
from tests.models.tiny import ADDED, CORPUS, FAMILIES, PHI, QWEN, THINKING, Turn, talk, tokenizer

TALKS = {
    "short": talk("user:What is the sum?", "assistant:23"),
    "turns": talk(
        "user:Hi", "assistant:Hello.", "user:And rain?", "assistant:(it falls)", "user:Why", "assistant:So"
    ),
    "unicode": talk("user:café 日本語", "assistant:naïve 👩‍👩‍👧 – é"),
    "repeated": talk("user:say 23 and 23", "assistant:23", "user:23", "assistant:23"),
    "spaces": talk("user:  hi \n", "assistant:\n  spaced out  \n", "user:\tb", "assistant: c "),
    "open": talk("user:Hi", "assistant:Hello.", "user:Bye"),
}


def said(renderer: Renderer, row) -> str:
    """Text of the supervised tokens."""
    return renderer.tokenizer.decode(row.ids[row.mask].tolist(), skip_special_tokens=False)


# --- published encodings ---------------------------------------------------------------------------------


def golden(variant: str):
    rows = {}
    for name in ("pool", "query"):
        for line in shared(f"golden/{name}.jsonl").open():
            row = json.loads(line)
            rows[row["id"]] = [Turn(m["role"], m["content"]) for m in row["messages"]]
    for line in shared("golden/encodings.jsonl").open():
        entry = json.loads(line)
        if entry["variant"] == variant:
            yield (
                entry["id"],
                rows[entry["id"]],
                np.array(entry["input_ids"]),
                np.array(entry["labels"]) != -100,
            )


@pytest.fixture(scope="module")
def golden_tokenizer():
    import transformers

    return transformers.AutoTokenizer.from_pretrained(shared("golden/model"))


def test_published_labels_exactly(golden_tokenizer):
    renderer = Renderer(golden_tokenizer, "tulu", compatible=True)
    names, talks, ids, masks = zip(*golden("tulu"), strict=True)
    assert len(names) == 76
    for name, row, wanted, mask in zip(names, renderer.render_many(talks), ids, masks, strict=True):
        np.testing.assert_array_equal(row.ids, wanted, err_msg=name)
        np.testing.assert_array_equal(row.mask, mask, err_msg=name)


@pytest.mark.parametrize("template", ["tulu", "auto"])
def test_the_mask_differs_from_the_published_one_by_newlines_between_turns_only(golden_tokenizer, template):
    renderer = Renderer(golden_tokenizer, template)
    newline = golden_tokenizer.encode("\n", add_special_tokens=False)
    different = []
    for name, messages, wanted, mask in golden("tulu"):
        row = renderer.render(messages)
        np.testing.assert_array_equal(row.ids, wanted, err_msg=name)
        assert not (row.mask & ~mask).any(), name
        if (row.mask != mask).any():
            different.append(name)
            assert set(row.ids[row.mask != mask]) == set(newline), name
    assert different == ["a-p001", "a-p012", "a-p027", "a-p052", "a-q11"]


@pytest.mark.parametrize("template", ["tulu", "auto"])
def test_published_queries_exactly(golden_tokenizer, template):
    renderer = Renderer(golden_tokenizer, template)
    count = 0
    for name, messages, wanted, mask in golden("tulu_promptlabel"):
        row = renderer.render_query(messages)
        np.testing.assert_array_equal(row.ids, wanted, err_msg=name)
        np.testing.assert_array_equal(row.mask, mask, err_msg=name)
        count += 1
    assert count == 12


def test_statuses_of_the_awkward_published_rows(golden_tokenizer):
    renderer = Renderer(golden_tokenizer, "tulu")
    rows = {name: renderer.render(messages) for name, messages, _, _ in golden("tulu")}
    assert rows["a-p033"].status == "truncated" and rows["a-p033"].mask[-1]
    assert rows["a-p057"].status == "no_target_tokens" and rows["a-p057"].truncated
    for empty in ("a-p018", "a-p049"):
        assert rows[empty].empty_response and rows[empty].status == "ok"
        assert list(rows[empty].ids[rows[empty].mask]) == [golden_tokenizer.eos_token_id]
    assert sum(row.straddling for row in rows.values()) == 0


# --- families of templates -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TALKS)
def test_answers_and_their_ends_are_supervised_and_nothing_else(family, name):
    template, stop = FAMILIES[family]
    renderer = Renderer(tokenizer(template), "auto")
    messages = TALKS[name]
    row = renderer.render(messages)
    assert row.status == "ok", row.reason
    whole = renderer.tokenizer.apply_chat_template([vars(m) for m in messages], tokenize=False)
    assert renderer.tokenizer.decode(row.ids.tolist()) == whole
    answers = [m.content for m in messages if m.role == "assistant"]
    stops = said(renderer, row).split(stop)
    assert [part.strip() for part in stops] == [*(answer.strip() for answer in answers), ""]
    assert row.mask.sum() == sum(
        len(renderer.token_ids([part + stop])[0]) for part in stops[:-1]
    )  # no token more than those texts have
    assert row.straddling == 0 or family in ("llama2", "mistral")  # these write a space before the answer


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_hold_for_random_talks(family):
    template, stop = FAMILIES[family]
    renderer = Renderer(tokenizer(template), "auto")
    draw = random.Random(7)
    words = [
        "the sum",
        "is",
        " 23",
        "\n\n",
        "</think>x",
        "é",
        "日",
        "[/INST]",
        "user",
        "  ",
        "{{ 1 }}",
        "\ud83d",
        "<s>",
    ]
    for _ in range(60):
        messages = []
        for i in range(draw.randrange(1, 6)):
            content = "".join(draw.choice(words) for _ in range(draw.randrange(0, 5)))
            messages.append(Turn("user" if i % 2 == 0 else "assistant", content))
        row = renderer.render(messages)
        if family == "thinking" and row.status == "refused":
            continue  # such a template rewrites what it reads
        answers = [m.content for m in messages if m.role == "assistant"]
        assert row.status == ("ok" if answers else "no_target_tokens"), row.reason
        mask = np.diff(np.concatenate([[0], row.mask.astype(int), [0]]))
        assert (mask == 1).sum() == len(answers)  # one run of tokens for each answer
        for answer, start, end in zip(
            answers, np.flatnonzero(mask == 1), np.flatnonzero(mask == -1), strict=True
        ):
            shown = renderer.tokenizer.decode(row.ids[start:end].tolist())
            assert shown.endswith(stop)
            kept = "".join(answer.replace("\ud83d", "\ufffd").split())
            found = "".join(shown.removesuffix(stop).split())
            assert found == kept or (family == "thinking" and kept.endswith(found))


def test_many_rows_are_the_same_as_one_by_one():
    renderer = Renderer(tokenizer(QWEN), "auto")
    for one, other in zip(
        renderer.render_many(list(TALKS.values()) * 200),
        [renderer.render(t) for t in TALKS.values()] * 200,
        strict=True,
    ):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.mask, other.mask)


def test_a_default_system_prompt_is_read_but_not_supervised():
    renderer = Renderer(tokenizer(QWEN), "auto")
    row = renderer.render(TALKS["short"])
    assert "You are kind." in renderer.tokenizer.decode(row.ids.tolist())
    assert said(renderer, row) == "23<|im_end|>"


def test_what_follows_the_end_of_turn_is_not_supervised():
    row = Renderer(tokenizer(PHI), "auto").render(TALKS["short"])  # …23<|end|>\n</s>
    assert row.mask.tolist()[-2:] == [False, False] and row.mask[-3]


def test_system_turns_and_tool_turns():
    qwen = Renderer(tokenizer(QWEN), "auto")
    row = qwen.render(talk("system:Be brief.", "user:2+2?", "assistant:call", "tool:4", "assistant:It is 4."))
    assert said(qwen, row) == "call<|im_end|>It is 4.<|im_end|>"
    llama = Renderer(tokenizer(FAMILIES["llama2"][0]), "auto")
    row = llama.render(talk("system:Be brief.", "user:2+2?", "assistant:4"))
    assert said(llama, row).split() == ["4", "</s>"] and "Be brief." in llama.tokenizer.decode(
        row.ids.tolist()
    )


@pytest.mark.parametrize(
    ("family", "turns", "reason"),
    [
        ("gemma", ("system:x", "user:y", "assistant:z"), "no system role here"),
        ("mistral", ("user:x", "user:y", "assistant:z"), "must alternate"),
        ("llama2", ("assistant:x", "user:y"), "must alternate"),
        ("mistral", ("system:s", "user:x", "assistant:y"), "leaves out message 0"),
    ],
)
def test_a_row_the_template_does_not_take_is_refused_with_its_words(family, turns, reason):
    rows = Renderer(tokenizer(FAMILIES[family][0]), "auto").render_many(
        [TALKS["short"], talk(*turns), TALKS["short"]]
    )
    assert [row.status for row in rows] == ["ok", "refused", "ok"]
    assert reason in rows[1].reason and len(rows[1].ids) == 0


def test_a_template_that_leaves_out_a_turn_refuses_the_row():
    only = (
        "{% for m in messages if m.role != 'tool' %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    )
    row = Renderer(tokenizer(only), "auto").render(talk("user:a", "assistant:b", "tool:c", "assistant:d"))
    assert row.status == "refused" and "message 2 (role 'tool')" in row.reason


def test_a_template_that_rewrites_answers_refuses_the_row():
    shout = "{% for m in messages %}{{ m.role + ': ' + m.content | upper + eos_token }}{% endfor %}"
    assert Renderer(tokenizer(shout), "auto").render(talk("user:a", "assistant:b")).status == "refused"


def test_think_sections_are_kept_in_the_last_turn_and_dropped_before():
    renderer = Renderer(tokenizer(THINKING), "auto")
    answer = "<think>\nfour and seven\n</think>\n\nEleven."
    row = renderer.render(talk("user:4+7?", f"assistant:{answer}"))
    assert said(renderer, row) == answer + "<|im_end|>"
    row = renderer.render(talk("user:4+7?", f"assistant:{answer}", "user:sure?", "assistant:Yes."))
    assert said(renderer, row) == "Eleven.<|im_end|>Yes.<|im_end|>"


# --- built-in templates and files ------------------------------------------------------------------------

LONG = talk("system:Be brief.", "user: a ", "assistant: b ", "user:c", "assistant:d")
BUILT_IN = {
    "tulu": "<|system|>\nBe brief.\n<|user|>\na\n<|assistant|>\nb</s>\n<|user|>\nc\n<|assistant|>\nd</s>",
    "alpaca": "Be brief.\n\n### Instruction:\na\n\n### Response:\nb</s>"
    "\n\n### Instruction:\nc\n\n### Response:\nd</s>",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n a <|im_end|>\n"
    "<|im_start|>assistant\n b <|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
    "<|im_start|>assistant\nd<|im_end|>\n",
    "none": "Be brief.\n a \n b </s>\nc\nd</s>",
}
ENDS = {
    "tulu": "b</s>d</s>",
    "alpaca": "b</s>d</s>",
    "chatml": " b <|im_end|>d<|im_end|>",
    "none": " b </s>d</s>",
}


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("bos", [False, True])
def test_built_in_templates_by_hand(name, bos):
    renderer = Renderer(tokenizer(bos=bos), name)
    row = renderer.render(LONG)
    assert renderer.text(LONG) == BUILT_IN[name]
    assert renderer.tokenizer.decode(row.ids.tolist()) == "<s>" * bos + BUILT_IN[name]
    assert said(renderer, row) == ENDS[name]


def test_end_of_turn_written_in_plain_text_is_found():
    import transformers

    plain = tokenizer()
    backend = plain.backend_tokenizer.to_str().replace("<|im_end|>", "<|unused|>")
    import tokenizers

    own = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(backend), eos_token="</s>"
    )
    renderer = Renderer(own, "chatml")
    row = renderer.render(TALKS["turns"])
    assert said(renderer, row).replace("\n", "") == "Hello.<|im_end|>(it falls)<|im_end|>So<|im_end|>"


def test_alpaca_has_the_usual_preamble_and_no_tools():
    renderer = Renderer(tokenizer(), "alpaca")
    assert renderer.text(TALKS["short"]).startswith("Below is an instruction")
    assert renderer.text(TALKS["short"][:1], generation=True).endswith("sum?\n\n### Response:\n")
    assert renderer.render(talk("user:a", "tool:b", "assistant:c")).status == "refused"


def test_a_jinja_file(tmp_path):
    path = tmp_path / "plain.jinja"
    path.write_text("{% for m in messages %}{{ m.role }}> {{ m.content }}{{ eos_token }}{% endfor %}")
    renderer = Renderer(tokenizer(bos=True), str(path))
    row = renderer.render(TALKS["short"])
    assert renderer.tokenizer.decode(row.ids.tolist()) == "<s>user> What is the sum?</s>assistant> 23</s>"
    path.write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert (
        Renderer(tokenizer(bos=True), str(path)).render(TALKS["short"]).ids.tolist().count(ADDED.index("<s>"))
        == 1
    )


def test_templates_that_cannot_be_had(tmp_path):
    with pytest.raises(RequestError, match=r"no chat template of its own.*tulu, alpaca, chatml, none"):
        Renderer(tokenizer(None), "auto")
    with pytest.raises(RequestError, match="neither a file nor a known template"):
        Renderer(tokenizer(), "tulip")
    broken = tmp_path / "broken.jinja"
    broken.write_text("ok\n{% for m in %}")
    with pytest.raises(RequestError, match=r"broken\.jinja, line 2"):
        Renderer(tokenizer(), str(broken))
    with pytest.raises(RequestError, match="max_tokens=0"):
        Renderer(tokenizer(), "tulu", max_tokens=0)
    with pytest.raises(RequestError, match="those of the template 'tulu'"):
        Renderer(tokenizer(), "chatml", compatible=True)


def test_templates_run_in_a_sandbox_and_never_read_the_clock():
    row = Renderer(tokenizer("{{ messages.__class__.__mro__ }}"), "auto").render(TALKS["short"])
    assert row.status == "refused"
    dated = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    assert Renderer(tokenizer(dated), "auto").text(TALKS["short"]).startswith("2024-07-26")


# --- edges -----------------------------------------------------------------------------------------------


def test_truncation_is_from_the_right_and_counted():
    whole = Renderer(tokenizer(), "tulu").render(LONG)
    for limit in range(1, len(whole.ids) + 2):
        row = Renderer(tokenizer(), "tulu", max_tokens=limit).render(LONG)
        np.testing.assert_array_equal(row.ids, whole.ids[:limit])
        np.testing.assert_array_equal(row.mask, whole.mask[:limit])
        np.testing.assert_array_equal(np.concatenate([row.ids, row.tail]), whole.ids)
        assert row.tokens_full == len(whole.ids)
        assert row.truncated == (limit < len(whole.ids))
        expected = (
            "no_target_tokens" if not whole.mask[:limit].any() else "truncated" if row.truncated else "ok"
        )
        assert row.status == expected


def test_queries_truncate_prompt_and_label_each_for_itself():
    renderer = Renderer(tokenizer(bos=True), "tulu", max_tokens=12)
    row = renderer.render_query(talk("user:" + "rain " * 30, "assistant:" + "falls " * 30))
    assert len(row.ids) == 24 and row.mask.tolist() == [False] * 12 + [True] * 12
    assert row.truncated and row.status == "truncated" and row.ids.tolist().count(ADDED.index("<s>")) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_label_of_a_query_make_up_the_row(family):
    template, stop = FAMILIES[family]
    renderer = Renderer(tokenizer(template), "auto")
    prompt, label = renderer.query_texts(TALKS["turns"])
    assert label.strip().endswith("So" + stop) or label.split() == ["So", stop]
    assert (prompt + label).rstrip() == renderer.text(TALKS["turns"]).rstrip().removesuffix(
        "\n</s>" if family == "phi" else ""
    )


def test_a_query_that_ends_with_a_user_turn_is_all_prompt():
    row = Renderer(tokenizer(QWEN), "auto").render_query(TALKS["open"])
    assert row.status == "no_target_tokens" and len(row.ids) > 0 and not row.mask.any()


def test_an_empty_answer_leaves_its_end_as_the_only_target():
    renderer = Renderer(tokenizer(), "tulu")
    row = renderer.render(talk("user:a", "assistant: \n"))
    assert said(renderer, row) == "</s>" and row.empty_response and row.status == "ok"


def test_rows_without_an_answer_or_without_a_token():
    renderer = Renderer(tokenizer(), "tulu")
    assert renderer.render(talk("user:a")).status == "no_target_tokens"
    empty = Renderer(tokenizer(), "none").render(talk("user:"))
    assert empty.status == "no_target_tokens" and len(empty.ids) == 0


def test_a_token_across_the_header_is_supervised_and_counted():
    join = "{% for m in messages %}{{ m.role + ' say' + m.content + eos_token }}{% endfor %}"
    own = tokenizer(join)
    own.add_tokens(["saysum"])
    row = Renderer(own, "auto").render(talk("user:x", "assistant:sum"))
    assert row.straddling == 1
    assert own.convert_ids_to_tokens(row.ids[row.mask].tolist()) == ["saysum", "</s>"]


def test_half_a_surrogate_pair_is_replaced():
    renderer = Renderer(tokenizer(), "tulu")
    row = renderer.render(talk("user:a\ud83db", "assistant:c\udc69"))
    assert row.status == "ok" and said(renderer, row) == "c\ufffd</s>"


def test_marks_of_our_own_in_the_contents_do_no_harm():
    renderer = Renderer(tokenizer(), "tulu")
    row = renderer.render(
        talk("user:\ue0001\ue001", "assistant:\ue0001\ue001 ok", "user:")
    )  # searched turn by turn
    assert row.status == "ok" and said(renderer, row) == "\ue0001\ue001 ok</s>"


def test_text_of_a_refused_row_raises():
    with pytest.raises(Refused, match="no system role"):
        Renderer(tokenizer(FAMILIES["gemma"][0]), "auto").text(talk("system:x", "user:y"))


def test_recipe_follows_what_determines_the_ids():
    base = Renderer(tokenizer(QWEN), "auto").recipe
    assert base == Renderer(tokenizer(QWEN), "auto").recipe
    json.dumps(base)
    others = [
        Renderer(tokenizer(QWEN), "auto", max_tokens=7).recipe,
        Renderer(tokenizer(PHI), "auto").recipe,
        Renderer(tokenizer(QWEN, bos=True), "auto").recipe,
        Renderer(tokenizer(QWEN), "tulu").recipe,
        Renderer(tokenizer(QWEN), "tulu", compatible=True).recipe,
    ]
    assert all(other != base for other in others)


def test_fingerprint_ignores_how_the_tokenizer_was_last_used():
    own = tokenizer(QWEN)
    before = tokenizer_fingerprint(own)
    own(["a", "b c d"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(own) == before
    own.add_tokens(["<|new|>"])
    assert tokenizer_fingerprint(own) != before


@pytest.mark.parametrize("kind", ["metaspace", "prepended space", "trimmed offsets"])
@pytest.mark.parametrize("template", ["tulu", "alpaca", "none"])
def test_other_kinds_of_tokenizers(kind, template):
    import tokenizers as parts
    import transformers

    rest = [f"<0x{byte:02X}>" for byte in range(256)]
    bpe = parts.Tokenizer(parts.models.BPE(byte_fallback=True, unk_token="<unk>"))
    if kind == "metaspace":
        bpe.pre_tokenizer = parts.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif kind == "prepended space":
        rules = [parts.normalizers.Prepend("▁"), parts.normalizers.Replace(" ", "▁")]
        bpe.normalizer = parts.normalizers.Sequence(rules)
    else:
        rest = []
        bpe = parts.Tokenizer(parts.models.BPE())
        bpe.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.post_processor = parts.processors.ByteLevel(trim_offsets=True)
    trainer = parts.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *rest],
        initial_alphabet=[] if rest else parts.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", unk_token="<unk>")
    row = Renderer(own, template).render(
        talk("user:rain ☃?", "assistant:rain  ☃ is 23", "user:x", "assistant:sum")
    )
    supervised = "".join(own.convert_ids_to_tokens(row.ids[row.mask].tolist()))
    snow = "<0xE2><0x98><0x83>" if rest else "âĺĥ"
    assert supervised.replace("Ġ", "▁") == f"rain▁▁{snow}▁is▁23</s>sum</s>"
