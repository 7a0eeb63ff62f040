"""Secrets are shown in part at most, and no command is given one."""

import pytest

from easq.redact import child_environ, hide, mask


def test_a_mask_shows_four_characters_of_a_long_secret_and_nothing_of_a_short_one() -> None:
    assert mask("YmE3NDkyMzdiMzNmMGM3ZmE4ZmNj==") == "****Nj=="
    assert mask("hunter2") == "****"
    assert mask("twelve-chars") == mask("nineteen-characters") == "****"
    assert mask("Basic dXNlcjpwYXNzd29yZC1jYW5hcnk=") == "****"


def test_a_secret_is_masked_as_it_is_and_percent_encoded_the_longest_first() -> None:
    text = hide("a s/crt+1 b s%2Fcrt%2B1 c s/crt d abc", ["s/crt", "s/crt+1", "abc"])
    assert text == "a **** b **** c **** d abc"
    assert hide('{"message":"bad a\\"b\\\\c"}', ['a"b\\c']) == '{"message":"bad ****"}'


@pytest.mark.parametrize("token", ["wrong", "needed", "signature", "token"])
def test_the_services_own_words_about_a_token_stay_whole(token: str) -> None:
    for text in ("the token is wrong", "a token is needed", "the signature is wrong"):
        assert hide(text, [token]) == text
    assert hide(f"bad {token}: the token is wrong", [token]) == "bad ****: the token is wrong"


def test_a_secret_that_is_a_word_leaves_the_sentences_of_easq_whole() -> None:
    text = "easq: the connection was lost"
    assert hide(text, ["connection"], words=False) == text
    for value in ("'connection'", "(connection)", "token=connection", "http://u:connection@h"):
        assert "connection" not in hide(f"see {value}.", ["connection"], words=False)
    assert hide("see pass1word.", ["pass1word"], words=False) == "see ****."


@pytest.mark.parametrize("password", ["p#w", "p/w", "p?w", "p@w", "p%w", "p:w", "12/w", "://"])
def test_a_command_gets_addresses_without_their_user_and_no_secret_of_ours(password: str) -> None:
    proxy = f"http://user:{password}@proxy:8080"
    given = {
        "EASQ_STORAGE": f"redis://:{password}@r",
        "EASQ_TOKEN": "t",
        "EASQ_TOKEN_FILE": "/f",
        **dict.fromkeys(("HTTP_PROXY", "https_proxy", "All_Proxy", "ftp_proxy"), proxy),
        "all_proxy": f"user:{password}@proxy:8080",
        "EASQ_URL": f"https://u:{password}@h/api/predict/q",
        "NO_PROXY": "a@b",
        "EASQ_GROUP": "g",
        "PATH": "/bin:a@b",
    }
    assert child_environ(given) == {
        **dict.fromkeys(("HTTP_PROXY", "https_proxy", "All_Proxy", "ftp_proxy"), "http://proxy:8080"),
        "all_proxy": "proxy:8080",
        "EASQ_URL": "https://h/api/predict/q",
        "NO_PROXY": "a@b",
        "EASQ_GROUP": "g",
        "PATH": "/bin:a@b",
    }


def test_a_proxy_without_a_user_stays_as_it_is() -> None:
    for proxy in ("http://proxy:8080", "proxy", "socks5h://[::1]:1080", ""):
        assert child_environ({"http_proxy": proxy}) == {"http_proxy": proxy}
