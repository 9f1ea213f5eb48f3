from app.money import PicoUsd, parse_price, parse_price_per_million
from app.pricing.price_book import PriceVersion
from app.pricing.price_list import price_list


def version(provider: str, prices: dict[str, PicoUsd]) -> PriceVersion:
    return PriceVersion(f"{provider}:m:1", provider, "m", 1, prices, {})


def tokens(provider: str, input_price: str, output_price: str) -> PriceVersion:
    prices = {"input": parse_price_per_million(input_price), "output": parse_price_per_million(output_price)}
    return version(provider, prices)


def test_tokens_are_listed_at_the_highest_price_of_any_provider() -> None:
    versions = [tokens("a", "0.10", "0.40"), tokens("b", "0.20", "0.30")]
    text = price_list("m", versions, units=("input", "output"))
    assert text == "m: 0.20 USD for input and 0.40 USD for output per million tokens"


def test_what_is_no_token_is_listed_for_each() -> None:
    prices = {"input": parse_price_per_million("1"), "web_search": parse_price("0.01")}
    text = price_list("m", [version("a", prices)], units=("input", "web_search"))
    assert text == "m: 1.00 USD for input per million tokens; 0.01 USD for web_search, each"


def test_images_are_listed_by_size() -> None:
    text = price_list("m", [version("a", {"image:1024x1024": parse_price("0.000001")})], units=("image:1024x1024",))
    assert text == "m: 0.000001 USD for image:1024x1024, each"
