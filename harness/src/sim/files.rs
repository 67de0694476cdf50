//! Opens the image under test over what lies beneath it.

use std::rc::Rc;

use blkdebug::disks::Disk;
use engine::chain::{Rebase, Store};
use engine::device::Port;
use engine::error::{Error, Refused};
use engine::image::{Access, Image, LocalFuture};
use engine::manage::BackingName;
use engine::qcow2::create::BackingFormat;
use engine::qcow2::{self, OpenOptions, Qcow2, header};
use engine::raw::Raw;

use super::client::Opener;
use super::stage::secrets;
use crate::workload::perform::file_name;

/// The files of a run.
#[derive(Clone, Debug)]
pub struct Files {
    /// The image's file.
    pub image: Port,
    /// The file that its guest data stand in, where that is another.
    pub data: Option<Port>,
    /// Those beneath, the one that the image lies over at the start first.
    pub beneath: Vec<File>,
    /// Which of them the image is opened over.
    pub follow: Follow,
    /// How the image is opened.
    pub options: OpenOptions,
}

/// A file beneath the image.
#[derive(Clone, Debug)]
pub struct File {
    /// Where it stands.
    pub disk: Disk,
    /// Its format.
    pub format: BackingFormat,
    /// Its device.
    pub port: Port,
    /// What it lies over.
    pub over: Option<Disk>,
}

/// What decides which file an image is opened over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Always the same, whatever its header calls it. It is only read.
    Always,
    /// The image's header, which names it. It may be written to.
    Header,
}

/// An open image, and what it is open over.
#[derive(Clone)]
pub struct Opened {
    /// The image.
    pub image: Rc<dyn Image>,
    /// The files beneath it, from the one that it is open over down.
    pub beneath: Vec<Beneath>,
}

/// An open file beneath the image.
#[derive(Clone)]
pub struct Beneath {
    /// Where it stands.
    pub disk: Disk,
    /// The file as an image.
    pub image: Rc<dyn Image>,
    /// Whether it may be written to.
    pub access: Access,
}

impl Opened {
    /// An image that lies over nothing.
    pub fn alone(image: Rc<dyn Image>) -> Self {
        Self {
            image,
            beneath: Vec::new(),
        }
    }

    /// Closes the image, and then what may have been written to beneath it.
    pub async fn close(&self) -> Result<(), Error> {
        self.image.close().await?;
        for file in &self.beneath {
            if file.access == Access::ReadWrite {
                file.image.close().await?;
            }
        }
        Ok(())
    }
}

impl Files {
    fn file(&self, disk: Disk) -> Result<&File, Error> {
        let mut files = self.beneath.iter();
        let file = files.find(|file| file.disk == disk);
        file.ok_or_else(|| {
            let text = format!("this run has no file `{}`", file_name(disk));
            Refused::Option(text).into()
        })
    }

    /// The file that the image is opened over, by its header or always.
    async fn over(&self) -> Result<Option<Disk>, Error> {
        match self.follow {
            Follow::Always => Ok(self.beneath.first().map(|file| file.disk)),
            Follow::Header => {
                let name = header::read(&self.image).await?.backing_name;
                let Some(name) = name else {
                    return Ok(None);
                };
                let mut disks = Disk::ALL.into_iter();
                let disk = disks.find(|disk| file_name(*disk).as_bytes() == name);
                let text = "the image names a backing file that this run does not have";
                Ok(Some(disk.ok_or(Refused::Option(text.into()))?))
            }
        }
    }

    /// Opens a file and all that lies beneath it; the file first.
    async fn open_down(&self, disk: Disk, access: Access) -> Result<Vec<Beneath>, Error> {
        let file = self.file(disk)?;
        let mut beneath = match file.over {
            Some(over) => Box::pin(self.open_down(over, Access::ReadOnly)).await?,
            None => Vec::new(),
        };
        let below = beneath.first().map(|below| Rc::clone(&below.image));
        let image: Rc<dyn Image> = match file.format {
            BackingFormat::Raw => Rc::new(Raw::open(file.port.clone(), access)),
            BackingFormat::Qcow2 => {
                let options = match access {
                    Access::ReadOnly => OpenOptions {
                        access,
                        ..OpenOptions::default()
                    },
                    Access::ReadWrite => self.options.clone(),
                };
                Rc::new(Qcow2::open(file.port.clone(), below, &options).await?)
            }
        };
        beneath.insert(
            0,
            Beneath {
                disk,
                image,
                access,
            },
        );
        Ok(beneath)
    }
}

impl Opener for Files {
    fn open(&self) -> LocalFuture<'static, Opened> {
        let files = self.clone();
        Box::pin(async move {
            let access = match files.follow {
                Follow::Always => Access::ReadOnly,
                Follow::Header => Access::ReadWrite,
            };
            let beneath = match files.over().await? {
                Some(over) => files.open_down(over, access).await?,
                None => Vec::new(),
            };
            let backing = beneath.first().map(|file| Rc::clone(&file.image));
            let open = qcow2::Files {
                image: files.image,
                data: files.data,
                backing,
            };
            let image = Qcow2::open_files(open, &files.options, &secrets()).await?;
            let image: Rc<dyn Image> = Rc::new(image);
            Ok(Opened { image, beneath })
        })
    }

    fn open_file(&self, disk: Disk) -> LocalFuture<'static, Rc<dyn Image>> {
        let files = self.clone();
        Box::pin(async move {
            let opened = files.open_down(disk, Access::ReadOnly).await?;
            Ok(Rc::clone(&opened[0].image))
        })
    }

    fn rebase_onto(&self, onto: Option<Disk>) -> Result<Rebase, Error> {
        let name = match onto {
            Some(disk) => Some(BackingName {
                name: file_name(disk).into(),
                format: Some(self.file(disk)?.format.name().into()),
            }),
            None => None,
        };
        Ok(Rebase {
            name,
            store: Store::Plain,
            planted: self.options.planted,
        })
    }
}
