//! TLS for the stand-in: a CA that is made for one run, and certificates by it for the server and its client.

use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// A server's TLS, and what a client needs for it, in PEM.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    pub(super) ca: String,
    pub(super) certificate: String,
    pub(super) key: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Makes a server at 127.0.0.1 that accepts only clients with a certificate by its CA.
    pub(super) fn new() -> Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key)?;
        let issuer = Issuer::new(params, ca_key);
        let signed = |name: &str| -> Result<_> {
            let key = KeyPair::generate()?;
            let params = CertificateParams::new(vec![name.to_owned()])?;
            Ok((params.signed_by(&key, &issuer)?, key))
        };
        let (server, server_key) = signed("127.0.0.1")?;
        let (client, client_key) = signed("lab-client")?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
        let key = PrivateKeyDer::try_from(server_key.serialize_der());
        let key = key.map_err(anyhow::Error::msg)?;
        let chain: Vec<CertificateDer<'static>> = vec![server.der().clone()];
        let config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            ca: ca.pem(),
            certificate: client.pem(),
            key: client_key.serialize_pem(),
        })
    }
}
