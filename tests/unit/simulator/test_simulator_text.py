"""Token counts and generated words."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.simulator import text
from qwenbench.workload.quality import judge


@given(st.text(max_size=300))
def test_pieces_are_the_text(content: str) -> None:
    assert "".join(text.pieces(content)) == content


def test_counts_are_near_a_real_tokenisers() -> None:
    assert len(text.pieces("hello " * 512)) in range(512, 530)
    assert len(text.pieces("12345")) == 5
    assert len(text.pieces("internationalisation")) in range(2, 5)
    assert len(text.pieces("東京の天気はどうですか")) in range(5, 9)


def test_words_read_as_sentences_and_follow_their_seed() -> None:
    first = "".join(islice(text.words(1), 200))
    assert first == "".join(islice(text.words(1), 200)) != "".join(islice(text.words(2), 200))
    assert first[0].isupper() and not first.startswith(" ")
    sentences = [sentence for sentence in first.split(". ") if sentence]
    assert len(sentences) > 8 and all(sentence[0].isupper() for sentence in sentences)
    assert len(set(first.split())) > 60
    assert not set('"\\') & set(first)  # words go into JSON as they are


def test_words_hold_nothing_that_json_would_escape() -> None:
    assert all(word.isascii() and word.isprintable() for word in islice(text.words(3), 5000))


@given(st.lists(st.text(alphabet="ab ", min_size=1, max_size=3), min_size=1, max_size=40), st.integers(1, 9))
def test_block_hashes_tell_prefixes_and_salts_apart(tokens: list[str], size: int) -> None:
    hashes = text.block_hashes(tokens, size, "s")
    assert len(hashes) == len(tokens) // size == len(set(hashes))
    assert text.block_hashes([*tokens, "x"], size, "s")[: len(hashes)] == hashes
    assert not set(hashes) & set(text.block_hashes(tokens, size, "t"))
    if hashes:
        changed = text.block_hashes(["other", *tokens[1:]], size, "s")
        assert not set(hashes) & set(changed)


def test_request_seed_follows_server_seed_and_text() -> None:
    assert text.request_seed(0, "a") == text.request_seed(0, "a")
    assert len({text.request_seed(0, "a"), text.request_seed(1, "a"), text.request_seed(0, "b")}) == 3


PROMPTS = {
    "ru": "Расскажите, пожалуйста, как вырастить помидоры на балконе северного города без лишних затрат",
    "el": "Πώς μπορώ να μαγειρέψω γρήγορα ένα νόστιμο φαγητό για τέσσερα άτομα χωρίς κρέας",
    "ar": "كيف يمكنني تعلم لغة جديدة بسرعة في المنزل مع طفلين صغيرين ووقت قليل جدا",
    "hi": "मुझे अपने गाँव के स्कूल के लिए एक छोटी सी पुस्तकालय योजना बनानी है कृपया मदद करें",
    "ja": "東京の天気はどうですか。明日の朝は傘が必要でしょうか、それとも晴れますか。",
    "zh": "请帮我写一封给房东的信，说明厨房的水管漏水并要求尽快修理。",
    "th": "ช่วยอธิบายวิธีทำแกงเขียวหวานสำหรับสี่คนโดยใช้วัตถุดิบที่หาได้ง่าย",
    "ko": "다음 주 회의를 위해 짧은 발표 자료를 준비해야 하는데 어떻게 시작하면 좋을까요",
    "de": "Wie lange muss ein Ei kochen, damit es hart ist?",
}


@pytest.mark.parametrize("language", PROMPTS)
@pytest.mark.parametrize("seed", range(5))
def test_answers_are_in_the_script_of_the_prompt(language: str, seed: int) -> None:
    answer = "".join(islice(text.words(seed, text.borrowed_words(PROMPTS[language])), 150))
    assert judge(answer, "", language, "stop") == []
    assert not set('"\\\n') & set(answer)


def test_latin_prompts_get_the_plain_words() -> None:
    assert text.borrowed_words(PROMPTS["de"]) == ()
    assert text.borrowed_words("12 + 34 = ?") == ()
