//! Calls to the image store.

use std::time::SystemTime;

use containerd_client::services::v1 as api;

use super::deadline::PunctualChannel;
use super::{Grpc, MAX_MESSAGE, empty, failed};
use crate::containerd::{Image, Result};

/// The label that CRI puts on each image. A list leaves it out: most images have no other.
const MANAGED: &str = "io.cri-containerd.image";

pub(super) async fn get(grpc: &Grpc, name: &str) -> Result<Image> {
    let call = "get image";
    let request = grpc.ask(api::GetImageRequest {
        name: name.to_owned(),
    });
    let reply = client(grpc).get(request).await;
    let image = reply.map_err(failed(call, name))?.into_inner().image;
    image.and_then(image_record).ok_or_else(empty(call, name))
}

pub(super) async fn list(grpc: &Grpc) -> Result<Vec<Image>> {
    list_by(grpc, vec![], "images").await
}

pub(super) async fn list_of(grpc: &Grpc, target: &str) -> Result<Vec<Image>> {
    let filter = format!("target.digest=={target:?}");
    list_by(grpc, vec![filter], target).await
}

async fn list_by(grpc: &Grpc, filters: Vec<String>, subject: &str) -> Result<Vec<Image>> {
    let request = grpc.ask(api::ListImagesRequest { filters });
    let reply = client(grpc).list(request).await;
    let mut images = reply.map_err(failed("list", subject))?.into_inner().images;
    for image in &mut images {
        image.labels.remove(MANAGED);
    }
    Ok(images.into_iter().filter_map(image_record).collect())
}

fn client(grpc: &Grpc) -> api::images_client::ImagesClient<PunctualChannel> {
    api::images_client::ImagesClient::new(grpc.channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
}

/// Converts a record; `None` if it has no target, which containerd never writes.
fn image_record(image: api::Image) -> Option<Image> {
    Some(Image {
        name: image.name,
        target: image.target?,
        labels: image.labels.into_iter().collect(),
        created_at: image.created_at.and_then(|t| SystemTime::try_from(t).ok()),
    })
}
