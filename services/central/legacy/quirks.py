"""Where version 1 of a part in the centre differs from version 1 of the same part in the regions.

Everywhere else both give the same. Each row has an example, `config`, which tests convert both ways. A part that is not
named here has no quirk; where the centre serves version 2 of a part, that has none either.
"""

QUIRKS = (
    {
        "part": "image",
        "edge": "upper-case letters in the registry's host",
        "region": "keeps them as they were written",
        "centre": "lower-cases the host",
        "config": {"image": "Registry.Example.COM:5000/team/app:7"},
    },
    {
        "part": "env",
        "edge": "white space at the end of a value",
        "region": "keeps it",
        "centre": "strips it",
        "config": {"image": "app", "env": {"GREETING": "hello \n"}},
    },
    {
        "part": "checks",
        "edge": "an interval below one second",
        "region": "checks that often",
        "centre": "rounds it up to one second",
        "config": {"image": "app", "checks": {"fast": {"type": "tcp", "port": 80, "interval": "200ms"}}},
    },
    {
        "part": "files",
        "edge": "permission bits above 0777 (setuid, setgid, sticky)",
        "region": "keeps them",
        "centre": "takes them away",
        "config": {"image": "app", "files": [{"guest_path": "/bin/tool", "raw_value": "YQ==", "mode": 0o4755}]},
    },
    {
        "part": "metadata",
        "edge": "an empty value",
        "region": "keeps the entry",
        "centre": "drops the entry",
        "config": {"image": "app", "metadata": {"team": "edge", "note": ""}},
    },
    {
        "part": "schedule",
        "edge": "upper-case letters",
        "region": "refuses the value",
        "centre": "reads it as lower case",
        "config": {"image": "app", "schedule": "Hourly"},
    },
)
