//! The payload that containerd passes to the programs that decrypt a layer (its stream processors). It is the
//! payload that containerd's CRI plugin sends with each layer that it pulls, if the keys are the node's own
//! (`image_decryption.key_model = "node"`). It holds the layer's descriptor and no key: the program finds the
//! keys by its own arguments. A program that expects the payload fails without it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::containerd::{Descriptor, Payloads};

/// The stream processors that get the payload (`imgcrypt`'s `PayloadToolIDs`).
const PROCESSORS: [&str; 2] = [
    "io.containerd.ocicrypt.decoder.v1.tar",
    "io.containerd.ocicrypt.decoder.v1.tar.gzip",
];

/// The payload's type (`imgcrypt`'s `PayloadURI`). The value is JSON.
const TYPE: &str = "io.containerd.ocicrypt.v1.Payload";

/// The payload in the form that `imgcrypt` writes.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Payload<'a> {
    decrypt_config: DecryptConfig,
    descriptor: Described<'a>,
}

/// The keys, by their kind. CRI passes none.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DecryptConfig {
    parameters: Option<BTreeMap<String, Vec<String>>>,
}

/// The descriptor of the layer's blob, its fields in the order of OCI's descriptor.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Described<'a> {
    media_type: &'a str,
    digest: &'a str,
    size: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'a str, &'a str>,
}

/// Returns the payloads for this layer, by stream processor.
pub(crate) fn payloads(layer: &Descriptor) -> Payloads {
    let annotations = layer.annotations.iter();
    let payload = Payload {
        decrypt_config: DecryptConfig { parameters: None },
        descriptor: Described {
            media_type: &layer.media_type,
            digest: &layer.digest,
            size: layer.size,
            annotations: annotations
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect(),
        },
    };
    let payload = prost_types::Any {
        type_url: TYPE.to_owned(),
        value: serde_json::to_vec(&payload).expect("strings and a number are JSON"),
    };
    PROCESSORS
        .into_iter()
        .map(|processor| (processor.to_owned(), payload.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_processors_get_the_descriptor_of_the_layer() {
        let annotation = ("org.opencontainers.image.enc.keys.jwe", "k");
        let layer = Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".to_owned(),
            digest: "sha256:00".to_owned(),
            size: 7,
            annotations: [(annotation.0.to_owned(), annotation.1.to_owned())].into(),
        };
        let payloads = payloads(&layer);
        assert_eq!(payloads.len(), PROCESSORS.len());
        let expected = r#"{"DecryptConfig":{"Parameters":null},"Descriptor":{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip+encrypted","digest":"sha256:00","size":7,"annotations":{"org.opencontainers.image.enc.keys.jwe":"k"}}}"#;
        for processor in PROCESSORS {
            let payload = &payloads[processor];
            assert_eq!(payload.type_url, TYPE);
            assert_eq!(std::str::from_utf8(&payload.value), Ok(expected));
        }
    }
}
