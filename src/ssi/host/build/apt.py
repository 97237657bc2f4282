"""Debian's packages by an apt configuration of our own; the host's is read and left as it is."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ssi.common.errors import BuildError
from ssi.host.build.command import Command, require_tools, run
from ssi.host.build.options import Report
from ssi.host.build.plan import staged

ETC = Path("/etc/apt")

SUITES = frozenset({
    "oldstable", "stable", "testing", "unstable", "sid", "experimental",
    "bullseye", "bookworm", "trixie", "forky", "duke",
})  # fmt: skip
"""Names by which a line of sources is known to be Debian's."""

OPTIONS = """\
# Made by ssi; read after the host's own configuration, of which proxies and logins stay in force.
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
Dir::State "{folder}/state";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
APT::Default-Release "";
APT::Sandbox::User "root";
APT::Architecture "{architecture}";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Architectures;
APT::Architectures:: "{architecture}";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One entry of the host's lists of package sources."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()
    key: str = ""
    """A key that is written out in the entry itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mirror:
    """Where Debian's packages come from, and what their signatures are checked with."""

    uri: str
    options: tuple[tuple[str, str], ...] = ()
    key: str = ""

    def line(self, suite: str, key_file: Path | None = None) -> str:
        """Return the line of a sources.list for `suite`."""
        options = dict(self.options)
        if self.key and key_file:
            options["signed-by"] = os.fspath(key_file)
        words = " ".join(f"{name}={value}" for name, value in options.items())
        return f"deb {f'[{words}] ' if words else ''}{self.uri} {suite} main"


KEPT_OPTIONS = ("signed-by", "trusted", "allow-insecure", "check-valid-until")


def _keep_options(options: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, options[name]) for name in KEPT_OPTIONS if options.get(name))


def parse_list(text: str) -> list[Source]:
    """Return the entries of `text`, in the one-line format of sources.list."""
    pattern = re.compile(r"deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s*(.*)")
    sources = []
    for line in text.splitlines():
        if not (matched := pattern.fullmatch(line.partition("#")[0].strip())):
            continue
        words = (word.partition("=") for word in (matched[1] or "").split())
        options = {name.lower(): value for name, _, value in words}
        sources.append(
            Source((matched[2],), (matched[3],), tuple(matched[4].split()), _keep_options(options))
        )
    return sources


def _parse_stanza(lines: Iterable[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        if line[0] in " \t" and name:
            fields[name] += "\n" + line[1:]
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _unfold_key(text: str) -> str:
    """Return a key that stands in a field: its empty lines are written as a dot there."""
    return "\n".join("" if line.strip() == "." else line for line in text.strip().splitlines())


def parse_deb822(text: str) -> list[Source]:
    """Return the entries of `text`, in the format of `.sources` files."""
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    sources = []
    for stanza in re.split(r"\n[ \t]*\n", uncommented):
        fields = _parse_stanza(line for line in stanza.splitlines() if line.strip())
        enabled = fields.get("enabled", "yes").lower() not in {"no", "false", "0", "off", "disable"}
        if not enabled or "deb" not in fields.get("types", "").split():
            continue
        key = fields.get("signed-by", "")
        inline = "BEGIN PGP" in key
        if inline:
            del fields["signed-by"]
        uris, suites, components = (
            tuple(fields.get(name, "").split()) for name in ("uris", "suites", "components")
        )
        written = _unfold_key(key) if inline else ""
        sources.append(Source(uris, suites, components, _keep_options(fields), written))
    return sources


def read_sources(etc: Path = ETC) -> list[Source]:
    """Return all entries of the host's lists, in apt's order."""
    sources: list[Source] = []
    parts = sorted((etc / "sources.list.d").glob("*"))
    for path in (etc / "sources.list", *parts):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            sources += parse_list(text)
        elif path.suffix == ".sources":
            sources += parse_deb822(text)
    return sources


def _is_debian(suite: str) -> bool:
    return re.split("[-/]", suite)[0] in SUITES and not suite.endswith("security")


def choose_mirror(sources: Iterable[Source], given: str = "") -> Mirror:
    """Return the mirror of Debian itself among `sources`; `given` is a wish for its URI."""
    if given:
        return Mirror(given)
    for source in sources:
        if "main" not in source.components or not any(map(_is_debian, source.suites)):
            continue
        for uri in source.uris:
            if not uri.startswith("cdrom:"):
                return Mirror(uri, source.options, source.key)
    raise BuildError(
        "no Debian mirror among this machine's package sources",
        hint="name one: SSI_MIRROR=http://HOST/debian ssi build …"
        " (its keys: apt-get install debian-archive-keyring)",
    )


def find_mirror() -> Mirror:
    """Return the mirror this machine uses; SSI_MIRROR in the environment names another."""
    return choose_mirror(read_sources(), os.environ.get("SSI_MIRROR", ""))


def find_security() -> Mirror | None:
    """Return where this machine gets Debian's security updates, None if from nowhere."""
    for source in read_sources():
        for suite in source.suites:
            name, _, rest = suite.partition("-")
            if name in SUITES and rest == "security" and "main" in source.components:
                return Mirror(source.uris[0], source.options, source.key)
    return None


def read_acquire_options() -> list[str]:
    """Return the host's proxies and https settings as lines of an apt.conf."""
    lines = run(Command(["apt-config", "dump"])).splitlines()
    wanted = re.compile(r'Acquire::(https?|ftp)::\S*(Proxy|CA|Verify|Ssl|Timeout)\S* ".+";', re.I)
    return [line for line in lines if wanted.match(line)]


@dataclasses.dataclass(frozen=True, slots=True)
class Package:
    """A version of a package that can be downloaded."""

    name: str
    version: str
    size: int
    sha256: str


class Apt:
    """An apt of our own in a folder of the cache."""

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        require_tools("apt-get", "apt-cache")
        self._folder = folder
        self._mirror = mirror
        self._conf = folder / "apt.conf"

    def _write(self, suites: Sequence[str]) -> None:
        for name in ("lists/partial", "cache/archives/partial", "state", "log"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        key_file = self._folder / "mirror.asc"
        key_file.write_text(self._mirror.key)
        architecture = run(Command(["dpkg", "--print-architecture"])).strip()
        options = OPTIONS.format(folder=self._folder, architecture=architecture)
        self._conf.write_text(options)
        lines = [self._mirror.line(suite, key_file) for suite in suites]
        (self._folder / "sources.list").write_text("\n".join(lines) + "\n")

    def _run(self, program: str, *words: str, cwd: Path | None = None) -> str:
        return run(Command([program, "-q", "-c", self._conf, *words], cwd=cwd))

    def update(self, suites: Sequence[str], report: Report) -> None:
        """Fetch the lists of `suites`; those that the mirror lacks are left out."""
        try:
            self._update(suites)
        except BuildError as error:
            there = [suite for suite in suites if self._has(suite)]
            if not there:
                raise BuildError(
                    f"the mirror {self._mirror.uri} has none of {', '.join(suites)}:\n{error}",
                    hint="see that this machine's own `apt-get update` works",
                ) from error
            report.note(f"the mirror has no {', '.join(set(suites) - set(there))}")
            self._update(there)

    def _update(self, suites: Sequence[str]) -> None:
        self._write(suites)
        self._run("apt-get", "-o", "APT::Update::Error-Mode=any", "update")

    def _has(self, suite: str) -> bool:
        try:
            self._update([suite])
        except BuildError:
            return False
        return True

    def names(self, prefix: str) -> list[str]:
        """Return the names of packages that begin with `prefix`."""
        return self._run("apt-cache", "pkgnames", prefix).split()

    def newest(self, name: str) -> Package:
        """Return the newest version of the package `name`."""
        fields = _parse_stanza(
            line for line in self._run("apt-cache", "--no-all-versions", "show", name).splitlines()
            if line.strip()
        )  # fmt: skip
        return Package(name, fields["version"], int(fields["size"]), fields["sha256"])

    def download(self, package: Package, folder: Path) -> Path:
        """Return the file of `package` in `folder`, downloading it unless it is there."""
        version = package.version.replace(":", "%3a")
        wanted = folder / f"{package.name}_{version}.deb"
        if wanted.exists():
            return wanted
        # apt goes on with a file that it began in the same folder.
        fetching = folder / "fetching"
        fetching.mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "download", f"{package.name}={package.version}", cwd=fetching)
        [found] = fetching.glob(f"{package.name}_*.deb")
        found.rename(wanted)
        return wanted


def unpack_deb(deb: Path, target: Path) -> None:
    """Unpack the files of the package `deb` as the folder `target`."""
    with staged(target) as partial:
        partial.mkdir(parents=True)
        run(Command(["dpkg-deb", "-x", deb, partial]))
