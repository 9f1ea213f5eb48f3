"""Languages and countries, as a request says them and as backends want them. Pure."""

import re
from collections.abc import Mapping

RANGES_MAX = 16
_RANGE = re.compile(r"\s*([A-Za-z]{2,3})((?:-[A-Za-z0-9]{1,8})*)\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*)?")
_COUNTRY = re.compile(r"[A-Z]{2}")

# The language that a browser of that country most often asks for.
MAIN_LANGUAGE: Mapping[str, str] = {
    **dict.fromkeys(("AU", "CA", "GB", "IE", "IN", "NG", "NZ", "PH", "SG", "US", "ZA"), "en"),
    **dict.fromkeys(("AR", "CL", "CO", "ES", "MX", "PE", "UY", "VE"), "es"),
    **dict.fromkeys(("AT", "CH", "DE", "LI"), "de"),
    **dict.fromkeys(("FR", "LU", "MC"), "fr"),
    **dict.fromkeys(("BE", "NL"), "nl"),
    **dict.fromkeys(("BR", "PT"), "pt"),
    **dict.fromkeys(("CN", "HK", "TW"), "zh"),
    **dict.fromkeys(("AE", "EG", "SA"), "ar"),
    **{"BG": "bg", "CZ": "cs", "DK": "da", "EE": "et", "FI": "fi", "GR": "el", "HR": "hr", "HU": "hu", "ID": "id"},
    **{"IL": "he", "IS": "is", "IT": "it", "JP": "ja", "KR": "ko", "LT": "lt", "LV": "lv", "MY": "ms", "NO": "nb"},
    **{"PL": "pl", "RO": "ro", "RS": "sr", "RU": "ru", "SE": "sv", "SI": "sl", "SK": "sk", "TH": "th", "TR": "tr"},
    **{"UA": "uk", "VN": "vi"},
}

# https://api-dashboard.search.brave.com/documentation: anything else is refused.
BRAVE_COUNTRIES = frozenset(
    (
        *("AR", "AT", "AU", "BE", "BR", "CA", "CH", "CL", "CN", "DE", "DK", "ES", "FI", "FR", "GB", "HK", "ID", "IN"),
        *("IT", "JP", "KR", "MX", "MY", "NL", "NO", "NZ", "PH", "PL", "PT", "RU", "SA", "SE", "TR", "TW", "US", "ZA"),
    )
)
BRAVE_LANGUAGES = frozenset(
    (
        *(
            "ar",
            "bg",
            "bn",
            "ca",
            "cs",
            "da",
            "de",
            "en",
            "en-gb",
            "es",
            "et",
            "eu",
            "fi",
            "fr",
            "gl",
            "gu",
            "he",
            "hi",
        ),
        *("hr", "hu", "is", "it", "jp", "kn", "ko", "lt", "lv", "ml", "mr", "ms", "nb", "nl", "pa", "pl", "pt-br"),
        *("pt-pt", "ro", "ru", "sk", "sl", "sr", "sv", "ta", "te", "th", "tr", "uk", "vi", "zh-hans", "zh-hant"),
    )
)
_BRAVE_NAMES: Mapping[str, str] = {"ja": "jp", "nn": "nb", "no": "nb"}


def preferred(header: str | None) -> tuple[str, str | None] | None:
    """The first choice of an ``Accept-Language`` value: its language, and its region or script if it says one.

    RFC 9110, section 12.5.4. What cannot be read is passed over.
    """
    best: tuple[str, str | None] | None = None
    best_weight = 0.0
    for part in (header or "").split(",")[:RANGES_MAX]:
        found = _RANGE.fullmatch(part)
        weight = float(found[3] or 1) if found else 0.0
        if found and weight > best_weight:
            more = [tag for tag in found[2].split("-") if len(tag) in {2, 4}]
            best, best_weight = (found[1].lower(), more[-1].upper() if more else None), weight
    return best


def searxng_language(header: str | None, country: str | None) -> str | None:
    """SearXNG's ``language``, ``de`` or ``de-AT``; the country is its region.

    SearXNG has no country of its own, so a country alone asks for that country's main language.
    """
    chosen = preferred(header)
    language = chosen[0] if chosen else MAIN_LANGUAGE.get(country or "")
    if language is None:
        return None
    region = country or (chosen[1] if chosen else None)
    return f"{language}-{region}" if region and _COUNTRY.fullmatch(region) else language


def brave_country(country: str | None) -> str:
    """Brave's ``country``; every country where none is asked for, or one that Brave does not know."""
    return country if country in BRAVE_COUNTRIES else "ALL"


def brave_language(header: str | None, country: str | None) -> str | None:
    """Brave's ``search_lang``, which has names of its own for some languages."""
    chosen = preferred(header)
    if chosen is None:
        return None
    language, more = chosen
    place = more or country
    if language == "zh":
        return "zh-hant" if place in {"HANT", "TW", "HK", "MO"} else "zh-hans"
    if language == "pt":
        return "pt-pt" if place == "PT" else "pt-br"
    if (language, place) == ("en", "GB"):
        return "en-gb"
    name = _BRAVE_NAMES.get(language, language)
    return name if name in BRAVE_LANGUAGES else None
