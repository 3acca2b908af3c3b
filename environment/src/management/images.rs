//! Upload, list, get, set, delete.

use dormouse_core::{
    domain::id::{Digest, Name},
    store::{self, Image, ImageOptions, NewImage},
};
use dormouse_proto::{call::Refusal, code::Code, management as wire};

use super::{
    describe, parse,
    server::{Context, blocking, disk, refuse},
};
use crate::{
    images::{Images, Inspection, OpenError, cluster::publish, inspect},
    spares::can_stand_by,
};

impl Context {
    pub(super) async fn begin_upload(
        &self,
        request: wire::BeginUpload,
    ) -> Result<wire::UploadBegun, Refusal> {
        let name = parse::image_name("image.name", &request.name)?;
        let version = parse::optional_name("image.version", &request.version)?;
        let digest = parse::digest(&request.digest)?;
        self.refuse_taken(&name, version.as_ref(), digest).await?;
        if let Some(image) = self.register_if_here(&name, version.as_ref(), digest).await? {
            return Ok(wire::UploadBegun { upload: 0, image: Some(describe::image(&image)) });
        }
        let images = self.shared.parts.images.clone();
        // Opens a file without a name: microseconds, and nothing is left of it if we die.
        let begin = || images.begin(request.size, digest).map_err(|error| refuse(&error));
        let upload = self.uploads.open(name, version, begin)?;
        Ok(wire::UploadBegun { upload, image: None })
    }

    pub(super) async fn upload_chunk(
        &self,
        request: wire::UploadChunk,
    ) -> Result<wire::ChunkStored, Refusal> {
        let received = self.uploads.write(request.upload, request.offset, request.data).await?;
        Ok(wire::ChunkStored { received })
    }

    pub(super) async fn finish_upload(&self, request: wire::FinishUpload) -> Result<wire::Image, Refusal> {
        let finished = self.uploads.finish(request.upload).await?;
        let _registry = self.registry().await;
        let bytes = (finished.stored.digest, finished.stored.size, &finished.stored.inspection);
        let image = self.register(&finished.name, finished.version.as_ref(), bytes).await?;
        Ok(describe::image(&image))
    }

    pub(super) async fn list_images(&self, request: wire::ListImages) -> Result<wire::ImagePage, Refusal> {
        let name = parse::optional_name("image.name", &request.name)?;
        let images =
            self.store().images(&self.tenant, name.as_ref()).await.map_err(|error| refuse(&error))?;
        Ok(wire::ImagePage { images: images.iter().map(describe::image).collect() })
    }

    pub(super) async fn get_image(&self, request: wire::GetImage) -> Result<wire::Image, Refusal> {
        let name = parse::image_name("image.name", &request.name)?;
        let version = parse::optional_name("image.version", &request.version)?;
        let image = self.store().image(&self.tenant, &name, version.as_ref()).await;
        image.map(|image| describe::image(&image)).map_err(|error| refuse(&error))
    }

    /// How processes of a version are kept. Refused if they could not do it.
    pub(super) async fn set_image(&self, request: wire::SetImage) -> Result<wire::Image, Refusal> {
        let name = parse::image_name("image.name", &request.name)?;
        let version = parse::optional_name("image.version", &request.version)?;
        let wire::ImageOptions { spares, reuse } = request.options.unwrap_or_default();
        let image = self.store().image(&self.tenant, &name, version.as_ref()).await;
        let image = image.map_err(|error| refuse(&error))?;
        let keeps = spares.is_some_and(|n| n > 0) || reuse.is_some_and(|n| n > 1);
        if keeps && !can_stand_by(&image.sdk_version) {
            let Image { name, version, sdk_version, .. } = &image;
            let message = format!(
                "image {name}:{version} is built with dormouse-sdk {sdk_version}, whose processes cannot stand by; \
                 build it with 0.3.0 or newer, or leave spares and reuse out"
            );
            return Err(Refusal::new(Code::FailedPrecondition, message));
        }
        // The very version that was looked at: a newer one may have come meanwhile.
        let options = ImageOptions { spares, reuse };
        let set = self.store().set_image_options(&self.tenant, &name, Some(&image.version), options).await;
        set.map(|image| describe::image(&image)).map_err(|error| refuse(&error))
    }

    pub(super) async fn delete_image(&self, request: wire::DeleteImage) -> Result<wire::Deleted, Refusal> {
        let name = parse::image_name("image.name", &request.name)?;
        let version = parse::optional_name("image.version", &request.version)?;
        let _registry = self.registry().await;
        let deletion = self
            .store()
            .delete_image(&self.tenant, &name, version.as_ref())
            .await
            .map_err(|error| refuse(&error))?;
        for digest in deletion.unused {
            let images = self.shared.parts.images.clone();
            let removed = blocking(move || images.remove(&digest)).await?;
            removed.map_err(|error| disk("the image is deleted, its file could not be", &error))?;
        }
        Ok(wire::Deleted { count: deletion.versions })
    }

    /// A version means the same bytes for ever: said before they travel, not after.
    async fn refuse_taken(&self, name: &Name, version: Option<&Name>, digest: Digest) -> Result<(), Refusal> {
        let Some(version) = version else { return Ok(()) };
        match self.store().image(&self.tenant, name, Some(version)).await {
            Ok(Image { name, version, digest: stored, .. }) if stored != digest => {
                Err(refuse(&store::Error::OtherImage { name, version, digest: stored }))
            }
            Ok(_) | Err(store::Error::NoImage { .. }) => Ok(()),
            Err(error) => Err(refuse(&error)),
        }
    }

    /// Registers bytes that are here already; none if they are not, or are damaged: then they are
    /// sent again.
    async fn register_if_here(
        &self,
        name: &Name,
        version: Option<&Name>,
        digest: Digest,
    ) -> Result<Option<Image>, Refusal> {
        let _registry = self.registry().await;
        let images = self.shared.parts.images.clone();
        let Some((size, inspection)) = blocking(move || look(&images, digest)).await?? else {
            return Ok(None);
        };
        self.register(name, version, (digest, size, &inspection)).await.map(Some)
    }

    /// Held while a digest gets or loses its last name, so that an upload never loses the file
    /// that it was told is here. Not on PostgreSQL: there the bytes are in the database before a
    /// name points at them, storing them takes a while, and a missing file is fetched again.
    async fn registry(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        match self.store().kind() {
            store::Kind::Sqlite => Some(self.shared.registry.lock().await),
            store::Kind::Postgres => None,
        }
    }

    /// Without a version: the one that means these bytes already, or else the next number.
    async fn register(
        &self,
        name: &Name,
        version: Option<&Name>,
        (digest, size, inspection): (Digest, u64, &Inspection),
    ) -> Result<Image, Refusal> {
        let mut image = NewImage {
            tenant: self.tenant.clone(),
            name: name.clone(),
            // The right one is known last.
            version: name.clone(),
            digest,
            size,
            workflows: inspection.workflows.clone(),
            sdk_version: inspection.sdk_version.clone(),
            architecture: inspection.architecture.to_owned(),
            chunks: 0,
        };
        let images = &self.shared.parts.images;
        image.chunks = publish(self.store(), images, &image).await.map_err(|error| refuse(&error))?;
        let put = async |version: &Name| {
            let image = NewImage { version: version.clone(), ..image.clone() };
            self.store().put_image(image).await.map(|(image, _)| image)
        };
        if let Some(version) = version {
            return put(version).await.map_err(|error| refuse(&error));
        }
        loop {
            let known =
                self.store().images(&self.tenant, Some(name)).await.map_err(|error| refuse(&error))?;
            let version = match known.iter().find(|image| image.digest == digest) {
                Some(image) => image.version.clone(),
                None => next_version(&known)?,
            };
            match put(&version).await {
                // Another node was faster with that number.
                Err(store::Error::OtherImage { .. }) => {}
                answer => return answer.map_err(|error| refuse(&error)),
            }
        }
    }
}

/// One above the highest version that is a number.
fn next_version(known: &[Image]) -> Result<Name, Refusal> {
    let highest = known.iter().filter_map(|image| image.version.as_str().parse::<u64>().ok()).max();
    parse::name("image.version", &highest.unwrap_or(0).saturating_add(1).to_string())
}

/// Size and inspection of a file that is here and whole.
fn look(images: &Images, digest: Digest) -> Result<Option<(u64, Inspection)>, Refusal> {
    if !images.contains(&digest) {
        return Ok(None);
    }
    let file = match images.open_verified(&digest) {
        Ok(file) => file,
        Err(OpenError::Missing { .. } | OpenError::Damaged { .. }) => return Ok(None),
        Err(error) => return Err(refuse(&error)),
    };
    let size = file.metadata().map_err(|error| disk("the image cannot be read", &error))?.len();
    let inspection = inspect(&file).map_err(|error| refuse(&error))?;
    Ok(Some((size, inspection)))
}
