//! Images: immutable workflow binaries under a name and a version.

use std::fmt;

use dormouse_proto::management::{self as wire, client_frame::Operation, server_frame::Outcome};

use crate::{Client, Code, Error, Timestamp, client::unexpected};

/// An image as the services know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name it was pushed under.
    pub name: String,
    /// The version.
    pub version: String,
    /// Hexadecimal SHA-256 of its bytes.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
    /// Its workflows, read from the binary without running it.
    pub workflows: Vec<String>,
    /// The release of the SDK it links.
    pub sdk_version: String,
    /// What machine it is for.
    pub architecture: String,
    /// When this name and version came to point at it.
    pub created_at: Option<Timestamp>,
    /// Processes of it that stand ready on each node.
    pub spares: u32,
    /// Instances that one process of it may serve, one after the other; 1: no reuse.
    pub reuse: u32,
}

/// How processes of a version are kept. What is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Processes that stand ready on each node, at most 64; 0: none.
    pub spares: Option<u32>,
    /// Instances that one process may serve, one after the other, at most 10,000; 1: no reuse.
    pub reuse: Option<u32>,
}

impl Image {
    pub(crate) fn from_wire(image: wire::Image) -> Self {
        Self {
            name: image.name,
            version: image.version,
            digest: image.digest,
            size: image.size,
            workflows: image.workflows,
            sdk_version: image.sdk_version,
            architecture: image.architecture,
            created_at: Timestamp::optional(image.created_at),
            spares: image.spares,
            reuse: image.reuse.max(1),
        }
    }
}

/// `NAME` or `NAME:VERSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    /// The name.
    pub name: String,
    /// Empty: the newest.
    pub version: String,
}

impl std::str::FromStr for ImageRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) =
            text.split_once(':').map_or((text, None), |(name, version)| (name, Some(version)));
        if name.is_empty() || version.is_some_and(str::is_empty) {
            return Err(format!("the image is {text:?}; it must be NAME or NAME:VERSION"));
        }
        Ok(Self { name: name.to_owned(), version: version.unwrap_or_default().to_owned() })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.version.is_empty() { Ok(()) } else { write!(f, ":{}", self.version) }
    }
}

impl Client {
    /// Every image, or every version of one name.
    pub async fn images(&self, name: Option<&str>) -> Result<Vec<Image>, Error> {
        let request = Operation::ListImages(wire::ListImages { name: name.unwrap_or_default().to_owned() });
        self.call(request, |outcome| match outcome {
            Outcome::Images(page) => Ok(page.images.into_iter().map(Image::from_wire).collect()),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// One image; without a version the newest.
    pub async fn image(&self, image: &ImageRef) -> Result<Image, Error> {
        let request =
            Operation::GetImage(wire::GetImage { name: image.name.clone(), version: image.version.clone() });
        self.call(request, |outcome| match outcome {
            Outcome::Image(image) => Ok(Image::from_wire(image)),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// Sets how processes of a version are kept; without a version of the newest. Answers the image as it is then.
    ///
    /// Refused with `FAILED_PRECONDITION` if the image's SDK is older than 0.3.0, with `INVALID_ARGUMENT` beyond
    /// the limits. Processes that stand ready are ended or started within moments.
    pub async fn set_image(&self, image: &ImageRef, options: ImageOptions) -> Result<Image, Error> {
        let request = Operation::SetImage(wire::SetImage {
            name: image.name.clone(),
            version: image.version.clone(),
            options: Some(wire::ImageOptions { spares: options.spares, reuse: options.reuse }),
        });
        self.call(request, |outcome| match outcome {
            Outcome::Image(image) => Ok(Image::from_wire(image)),
            other => Err(unexpected(&other)),
        })
        .await
    }

    /// Deletes one version, or without a version all of them; answers how many. Images that
    /// instances still need are refused.
    pub async fn delete_image(&self, image: &ImageRef) -> Result<u64, Error> {
        let request = Operation::DeleteImage(wire::DeleteImage {
            name: image.name.clone(),
            version: image.version.clone(),
        });
        let mut sent = 0;
        let answer = self
            .call_counted(
                request,
                |outcome| match outcome {
                    Outcome::Deleted(deleted) => Ok(deleted.count),
                    other => Err(unexpected(&other)),
                },
                &mut sent,
            )
            .await;
        match answer {
            // Done by the first time, whose answer got lost.
            Err(error) if sent > 1 && error.refused_with(Code::NotFound) => Ok(0),
            answer => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_reference_reads_back() {
        for text in ["billing", "billing:1.2"] {
            assert_eq!(text.parse::<ImageRef>().expect(text).to_string(), text);
        }
        for text in ["", ":1", "billing:"] {
            assert!(text.parse::<ImageRef>().is_err(), "{text}");
        }
    }
}
