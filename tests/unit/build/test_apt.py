"""Reading the host's package sources, in all the ways people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssi.common.errors import BuildError
from ssi.host.build.apt import Mirror, choose_mirror, parse_deb822, parse_list, read_sources

ONE_LINE = """
# comment
deb-src http://src.example/debian trixie main
deb http://sec.example/debian-security trixie-security main
deb [arch=amd64 signed-by=/k.gpg] https://one.example/debian trixie main contrib # mine
deb cdrom:[Debian]/ trixie main
"""

DEB822 = """# a comment
Types: deb
URIs: http://sec.example/debian-security
Suites: trixie-security
Components: main

Types: deb deb-src
# another comment
URIs: mirror+file:/etc/apt/mirrors/debian.list
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: sid
Components: main
"""

INLINE_KEY = """Types: deb
URIs: http://key.example/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEY
 -----END PGP PUBLIC KEY BLOCK-----
"""


def test_one_line_format() -> None:
    mirror = choose_mirror(parse_list(ONE_LINE))
    assert mirror == Mirror("https://one.example/debian", (("signed-by", "/k.gpg"),))
    assert mirror.line("sid") == "deb [signed-by=/k.gpg] https://one.example/debian sid main"


def test_deb822_format() -> None:
    mirror = choose_mirror(parse_deb822(DEB822))
    assert mirror.uri == "mirror+file:/etc/apt/mirrors/debian.list"
    assert dict(mirror.options)["signed-by"].endswith("debian-archive-keyring.gpg")
    assert len(parse_deb822(DEB822)) == 2, "what is switched off does not count"


def test_a_key_written_out() -> None:
    mirror = choose_mirror(parse_deb822(INLINE_KEY))
    assert mirror.key.splitlines()[1] == ""
    assert "BEGIN PGP" in mirror.key
    line = mirror.line("sid", Path("/cache/mirror.asc"))
    assert line == "deb [signed-by=/cache/mirror.asc] http://key.example/debian sid main"


def test_no_options() -> None:
    assert Mirror("http://m/debian").line("sid") == "deb http://m/debian sid main"


def test_a_wish_wins() -> None:
    assert choose_mirror(parse_list(ONE_LINE), "http://mine/debian").uri == "http://mine/debian"


@pytest.mark.parametrize("text", ["", "deb http://u.example/ubuntu noble main", "deb x", "rubbish"])
def test_no_mirror_has_a_remedy(text: str) -> None:
    with pytest.raises(BuildError, match="no Debian mirror") as caught:
        choose_mirror(parse_list(text))
    assert caught.value.hint
    assert "SSI_MIRROR" in caught.value.hint


def test_reads_all_files(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://a/debian sid main\n")
    (parts / "b.sources").write_text(DEB822)
    (parts / "c.list").write_text("deb http://c/debian sid main\n")
    (parts / "d.list.save").write_text("deb http://d/debian sid main\n")
    uris = [uri for source in read_sources(tmp_path) for uri in source.uris]
    assert uris[0] == "http://a/debian"
    assert uris[-1] == "http://c/debian"
    assert read_sources(tmp_path / "missing") == []
