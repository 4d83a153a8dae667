"""How annotations of fairjax are checked in the tests: an int will do where a float is meant."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
