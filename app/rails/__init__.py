"""Rails: how a request says who pays."""
