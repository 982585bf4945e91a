//! OCI images made in memory: one program in one layer
//! (<https://github.com/opencontainers/image-spec>).

use super::pause::Arch;
use ring::digest;
use std::collections::BTreeMap;

/// One content-addressed part of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// The OCI media type.
    pub media_type: &'static str,
    /// The content.
    pub bytes: Vec<u8>,
    /// Digests of the parts this one names, which must be kept as long as it is.
    pub refers: Vec<String>,
}

/// A whole image: parts in the order in which they are to be written, the manifest last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Layer, configuration, and whatever else the manifest names.
    pub parts: Vec<Blob>,
    /// The manifest.
    pub manifest: Blob,
}

impl Image {
    /// An image that is one executable file, `program` at the absolute path `path`, and runs it.
    /// The same bytes every time.
    pub fn of_program(arch: Arch, path: &str, program: &[u8]) -> Image {
        let archive = tar(path.trim_start_matches('/'), program);
        let layer = blob("application/vnd.oci.image.layer.v1.tar", archive, []);
        let config = serde_json::json!({
            "architecture": arch.name(),
            "os": "linux",
            "config": { "Entrypoint": [path] },
            "rootfs": { "type": "layers", "diff_ids": [layer.digest] },
        });
        let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().into(), []);
        let descriptor = |b: &Blob| {
            let size = b.bytes.len();
            serde_json::json!({ "mediaType": b.media_type, "digest": b.digest, "size": size })
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(&config),
            "layers": [descriptor(&layer)],
        });
        let manifest = blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().into(),
            [config.digest.clone(), layer.digest.clone()],
        );
        Image { parts: vec![layer, config], manifest }
    }
}

fn blob<const N: usize>(media_type: &'static str, bytes: Vec<u8>, refers: [String; N]) -> Blob {
    let hash = digest::digest(&digest::SHA256, &bytes);
    let digest = format!("sha256:{}", data_encoding::HEXLOWER.encode(hash.as_ref()));
    Blob { digest, media_type, bytes, refers: refers.into() }
}

impl Blob {
    /// containerd's labels for what this part refers to, which its garbage collector follows.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let refers = self.refers.iter().enumerate();
        refers.map(|(n, d)| (format!("containerd.io/gc.ref.content.{n}"), d.clone())).collect()
    }
}

/// A tar archive (POSIX.1-1988 ustar) of one executable file owned by root, dated 1970.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut header = Vec::with_capacity(BLOCK);
    let mut field = |text: &str, width: usize| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(width, 0);
        header.extend(bytes);
    };
    field(name, 100);
    field("0000755", 8); // mode
    field("0000000", 8); // user
    field("0000000", 8); // group
    field(&format!("{:011o}", content.len()), 12);
    field("00000000000", 12); // time
    field("        ", 8); // checksum: blanks while it is computed
    field("0", 1); // a regular file
    field("", 100); // no link
    field("ustar", 6);
    field("00", 2);
    field("root", 32);
    field("root", 32);
    field("0000000", 8);
    field("0000000", 8);
    field("", 155);
    header.resize(BLOCK, 0);
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    let sum = format!("{sum:06o}\0 ");
    for (to, from) in header.iter_mut().skip(148).zip(sum.bytes()) {
        *to = from;
    }
    let mut out = header;
    out.extend(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out.extend([0; 2 * BLOCK]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_names_its_parts() {
        for arch in [Arch::Amd64, Arch::Arm64, Arch::Arm] {
            let image = Image::of_program(arch, "/bin/x", b"x");
            let manifest: serde_json::Value = serde_json::from_slice(&image.manifest.bytes).unwrap();
            let [layer, config] = image.parts.as_slice() else { panic!("two parts") };
            assert_eq!(manifest["layers"][0]["digest"], layer.digest);
            assert_eq!(manifest["config"]["digest"], config.digest);
            assert_eq!(manifest["config"]["size"], config.bytes.len());
            let config: serde_json::Value = serde_json::from_slice(&config.bytes).unwrap();
            assert_eq!(config["config"]["Entrypoint"][0], "/bin/x");
            assert_eq!(config["rootfs"]["diff_ids"][0], layer.digest);
            assert_eq!(image.manifest.labels().len(), 2);
            assert!(image.parts.iter().all(|p| p.labels().is_empty()));
        }
    }

    #[test]
    fn the_archive_is_a_tar() {
        let archive = tar("pause", b"hello");
        assert_eq!(archive.len(), 4 * 512);
        assert_eq!(&archive[257..265], b"ustar\x0000");
        let sum: u32 = archive[..512]
            .iter()
            .enumerate()
            .map(|(n, b)| if (148..156).contains(&n) { 32 } else { u32::from(*b) })
            .sum();
        assert_eq!(std::str::from_utf8(&archive[148..154]).unwrap(), format!("{sum:06o}"));
        assert_eq!(&archive[512..517], b"hello");
    }
}
