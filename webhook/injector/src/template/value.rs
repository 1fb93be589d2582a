//! Values of the template engine, and the keys that mark typed objects.

use gotmpl::Value as Data;

/// Key that marks a map as a typed object. No template can write it, and none ranges over an object. The value lists the
/// fields that are set in the order of the Go type, or is [`PROTO_OBJECT`].
pub(super) const TYPED_OBJECT_KEY: &str = "\0";
/// Key of typed objects that have all fields of their Go type.
pub(crate) const COMPLETE_KEY: &str = "\0complete";
/// Value of [`TYPED_OBJECT_KEY`] in messages of Istio's API, whose Go names differ from the JSON names by the first letter only.
pub(super) const PROTO_OBJECT: Data = Data::Bool(true);

pub(crate) fn text(text: &str) -> Data {
    Data::String(text.into())
}

pub(super) fn list(items: impl IntoIterator<Item = Data>) -> Data {
    Data::List(items.into_iter().collect())
}
