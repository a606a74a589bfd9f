//! Paints a batch of pictures on the device: masks, what they are painted with, and the blend, which goes
//! straight into a program's input. The host makes the few random numbers and says, from areas and
//! changes that come back, what is drawn again; pictures do not come back.

use std::sync::Arc;

use super::augment::{self, Base, MOST_STEPS, Step};
use super::blend;
use super::buffer::{DeviceBuffer, Pinned};
use super::device::{Gpu, Priority};
use super::launch::Arg;
use super::perlin::{self, Figure, MOST_CELLS, MOST_FIGURES, MOST_RADIUS, Outline};
use super::queue::{Queue, at};
use crate::engine::ProgramError;

/// How one picture of a batch is painted.
#[derive(Clone, Debug, PartialEq)]
pub struct Paint<'a> {
    pub base: Base<'a>,
    /// At most `MOST_STEPS`; none after a toned base.
    pub steps: Vec<Step<'a>>,
    /// Without colour.
    pub grey: bool,
    pub opacity: f32,
}

/// What painting changes of a picture: Σ |α·m·(P − I)| over channels, and Σ 3·m, in units of 2⁻²⁴.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub changed: u64,
    pub weight: u64,
}

/// The largest side: a picture's bytes are counted in 32 bits.
const MOST_SIDE: usize = 16_384;

/// Device memory; programs that read the blend hold on to it.
#[derive(Debug)]
struct Buffers {
    outline_plans: DeviceBuffer,
    lattice: DeviceBuffer,
    figures: DeviceBuffer,
    outlines: DeviceBuffer,
    areas: DeviceBuffer,
    radii: DeviceBuffer,
    masks: DeviceBuffer,
    plans: DeviceBuffer,
    tables: DeviceBuffer,
    clouds: DeviceBuffer,
    pictures: DeviceBuffer,
    sources: DeviceBuffer,
    /// The paint, which every step takes from one to the other.
    paint: [DeviceBuffer; 2],
    soft: DeviceBuffer,
    stats: DeviceBuffer,
    sums: DeviceBuffer,
}

/// Host memory that copies start from or end in.
struct Host {
    outline_plans: Pinned<perlin::Plan>,
    lattice: Pinned<[f32; 2]>,
    figures: Pinned<Figure>,
    areas: Pinned<u32>,
    radii: Pinned<u32>,
    masks: Pinned<f32>,
    plans: Pinned<augment::Plan>,
    tables: Pinned<f32>,
    pictures: Pinned<u8>,
    sources: Pinned<u8>,
    sums: Pinned<[u64; 2]>,
}

/// Fields drop in this order: first what may still run.
pub struct Painter {
    queue: Queue,
    buffers: Arc<Buffers>,
    host: Host,
    size: usize,
    batch: usize,
    clouds: usize,
}

impl std::fmt::Debug for Painter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "painter of {} pictures of {}×{}", self.batch, self.size, self.size)
    }
}

/// More of something than there is room for.
fn within(name: &str, found: usize, needed: usize) -> Result<(), ProgramError> {
    match found <= needed {
        true => Ok(()),
        false => Err(ProgramError::Length { name: name.into(), needed, found }),
    }
}

fn exactly(name: &str, found: usize, needed: usize) -> Result<(), ProgramError> {
    match found == needed {
        true => Ok(()),
        false => Err(ProgramError::Length { name: name.into(), needed, found }),
    }
}

impl Painter {
    /// For `batch` square pictures of `size` pixels a side. `clouds`: planes in [0, 1] for `Base::Cloud`.
    pub fn new(
        gpu: &Gpu,
        priority: Priority,
        size: usize,
        batch: usize,
        clouds: &[Vec<f32>],
    ) -> Result<Self, ProgramError> {
        within("the side of a painted picture", size, MOST_SIDE)?;
        within("a painted batch", batch, usize::from(u16::MAX))?;
        let pixels = size * size;
        for cloud in clouds {
            exactly("a plane of noise", cloud.len(), pixels)?;
        }
        let all = batch * pixels;
        let (lattice, figures) = (batch * perlin::LATTICE, batch * MOST_FIGURES);
        let (areas, sums) = (batch * perlin::blocks(size), batch * blend::blocks(size));
        let tables = batch * MOST_STEPS * augment::TABLE;
        let device = |bytes: usize| DeviceBuffer::new(gpu, bytes);
        let buffers = Buffers {
            outline_plans: device(batch * size_of::<perlin::Plan>())?,
            lattice: device(lattice * 8)?,
            figures: device(figures * size_of::<Figure>())?,
            outlines: device(all)?,
            areas: device(areas * 4)?,
            radii: device(batch * 4)?,
            masks: device(all * 4)?,
            plans: device(batch * size_of::<augment::Plan>())?,
            tables: device(tables * 4)?,
            clouds: device(clouds.len() * pixels * 4)?,
            pictures: device(all * 3)?,
            sources: device(all * 3)?,
            paint: [device(all * 12)?, device(all * 12)?],
            soft: device(all * 12)?,
            stats: device(batch * augment::STATS * 4)?,
            sums: device(sums * 16)?,
        };
        let host = Host {
            outline_plans: Pinned::new(gpu, batch)?,
            lattice: Pinned::new(gpu, lattice)?,
            figures: Pinned::new(gpu, figures)?,
            areas: Pinned::new(gpu, areas)?,
            radii: Pinned::new(gpu, batch)?,
            masks: Pinned::new(gpu, all)?,
            plans: Pinned::new(gpu, batch)?,
            tables: Pinned::new(gpu, tables)?,
            pictures: Pinned::new(gpu, all * 3)?,
            sources: Pinned::new(gpu, all * 3)?,
            sums: Pinned::new(gpu, sums)?,
        };
        let mut queue = Queue::new(gpu, priority)?;
        queue.upload_now(&buffers.clouds, &clouds.concat())?;
        Ok(Painter { queue, buffers: Arc::new(buffers), host, size, batch, clouds: clouds.len() })
    }

    pub fn size(&self) -> usize {
        self.size
    }

    pub fn batch(&self) -> usize {
        self.batch
    }

    fn len(&self) -> usize {
        self.size * self.size * 3
    }

    /// Draws the masks of those pictures that have an outline here; of each, how many pixels are set.
    pub fn outline(&mut self, outlines: &[Option<Outline>]) -> Result<Vec<Option<usize>>, ProgramError> {
        exactly("outlines", outlines.len(), self.batch)?;
        let host = &mut self.host;
        let (mut any_noise, mut any_figures) = (false, false);
        let lattices = host.lattice.as_mut_slice().chunks_exact_mut(perlin::LATTICE);
        let figures = host.figures.as_mut_slice().chunks_exact_mut(MOST_FIGURES);
        let places = host.outline_plans.as_mut_slice().iter_mut().zip(lattices).zip(figures);
        for (((plan, lattice), figures), outline) in places.zip(outlines) {
            let Some(outline) = outline else {
                *plan = perlin::Plan::NOTHING;
                continue;
            };
            match outline {
                Outline::Noise { lattice: from, cells, .. } => {
                    within("cells of noise", cells[0].max(cells[1]), MOST_CELLS)?;
                    exactly("a lattice of noise", from.len(), (cells[0] + 1) * (cells[1] + 1))?;
                    lattice[..from.len()].copy_from_slice(from);
                    any_noise = true;
                }
                Outline::Strokes(from) | Outline::Ellipses(from) => {
                    within("figures of a mask", from.len(), MOST_FIGURES)?;
                    figures[..from.len()].copy_from_slice(from);
                    any_figures = true;
                }
            }
            *plan = perlin::Plan::of(outline, self.size);
        }
        let (d, Host { outline_plans, lattice, figures, areas, .. }) = (&*self.buffers, &mut self.host);
        let (lattice_len, figures_len) = (self.batch * perlin::LATTICE, self.batch * MOST_FIGURES);
        let args = [at(&d.outline_plans), at(&d.lattice), at(&d.figures), at(&d.outlines), at(&d.areas)];
        let launch = perlin::outline(args, self.size, self.batch);
        let (outline_plans, lattice, figures) = (&*outline_plans, &*lattice, &*figures);
        let (batch, downloaded) = (self.batch, &mut *areas);
        self.queue.batch(|q| {
            q.upload(&d.outline_plans, outline_plans, 0, batch)?;
            if any_noise {
                q.upload(&d.lattice, lattice, 0, lattice_len)?;
            }
            if any_figures {
                q.upload(&d.figures, figures, 0, figures_len)?;
            }
            q.launch(&launch)?;
            q.download(downloaded, &d.areas)
        })?;
        let per_picture = areas.as_slice().chunks_exact(perlin::blocks(self.size));
        let sum = |counts: &[u32]| counts.iter().map(|n| *n as usize).sum();
        Ok(outlines.iter().zip(per_picture).map(|(o, counts)| o.as_ref().map(|_| sum(counts))).collect())
    }

    /// Makes masks of the outlines, with an edge as soft as a box mean of this radius makes it.
    pub fn soften(&mut self, radii: &[u32]) -> Result<(), ProgramError> {
        exactly("radii", radii.len(), self.batch)?;
        within(
            "the radius of a soft edge",
            radii.iter().copied().max().unwrap_or(0) as usize,
            MOST_RADIUS as usize,
        )?;
        self.host.radii.as_mut_slice().copy_from_slice(radii);
        let (d, host, batch) = (&*self.buffers, &self.host.radii, self.batch);
        let launch = perlin::soften([at(&d.outlines), at(&d.radii), at(&d.masks)], self.size, batch);
        self.queue.batch(|q| {
            q.upload(&d.radii, host, 0, batch)?;
            q.launch(&launch)
        })?;
        Ok(())
    }

    /// The pictures to paint on, three bytes a pixel.
    pub fn set_pictures<'a>(
        &mut self,
        pictures: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<(), ProgramError> {
        let len = self.len();
        exactly("pictures", pictures.len(), self.batch)?;
        for (to, from) in self.host.pictures.as_mut_slice().chunks_exact_mut(len.max(1)).zip(pictures) {
            exactly("a picture", from.len(), len)?;
            to.copy_from_slice(from);
        }
        let (d, host, all) = (&*self.buffers, &self.host.pictures, self.batch * len);
        self.queue.batch(|q| q.upload(&d.pictures, host, 0, all))?;
        Ok(())
    }

    /// Makes the paint of those pictures that have some here; of each, what it changes under its mask.
    pub fn paint(&mut self, paints: &[Option<Paint>]) -> Result<Vec<Option<Change>>, ProgramError> {
        exactly("paints", paints.len(), self.batch)?;
        let (len, host) = (self.len(), &mut self.host);
        let tables = host.tables.as_mut_slice().chunks_exact_mut(MOST_STEPS * augment::TABLE);
        let sources = host.sources.as_mut_slice().chunks_exact_mut(len.max(1));
        let places = host.plans.as_mut_slice().iter_mut().zip(tables).zip(sources);
        let mut read = vec![];
        for (index, (((plan, tables), source), paint)) in places.zip(paints).enumerate() {
            let Some(paint) = paint else {
                plan.rest();
                continue;
            };
            within("steps of a paint", paint.steps.len(), MOST_STEPS)?;
            match &paint.base {
                Base::Rolled { source: from, .. } | Base::Warped { source: from, .. } => {
                    exactly("a picture", from.len(), len)?;
                    source.copy_from_slice(from);
                    read.push(index);
                }
                Base::Toned { source: from, .. } => {
                    exactly("a picture", from.len(), len)?;
                    within("steps of a toned paint", paint.steps.len(), 0)?;
                    source.copy_from_slice(from);
                    read.push(index);
                }
                Base::Cloud { plane, offset, .. } => {
                    within("planes of noise", *plane + 1, self.clouds)?;
                    within("the offset in a plane", *offset + 1, len / 3)?;
                }
                Base::Flat(_) => {}
            }
            *plan = augment::Plan::new(&paint.base, &paint.steps, paint.grey, paint.opacity, tables);
        }
        let launches = self.launches(paints);
        let (d, Host { plans, tables, sources, sums, .. }) = (&*self.buffers, &mut self.host);
        let (plans, tables, sources) = (&*plans, &*tables, &*sources);
        let (batch, downloaded) = (self.batch, &mut *sums);
        self.queue.batch(|q| {
            q.upload(&d.plans, plans, 0, batch)?;
            q.upload(&d.tables, tables, 0, batch * MOST_STEPS * augment::TABLE)?;
            for index in &read {
                q.upload(&d.sources, sources, index * len, len)?;
            }
            for launch in &launches {
                q.launch(launch)?;
            }
            q.download(downloaded, &d.sums)
        })?;
        let per_picture = sums.as_slice().chunks_exact(blend::blocks(self.size));
        let sum = |parts: &[[u64; 2]]| {
            let add = |to: Change, [changed, weight]: &[u64; 2]| Change {
                changed: to.changed + changed,
                weight: to.weight + weight,
            };
            parts.iter().fold(Change::default(), add)
        };
        Ok(paints.iter().zip(per_picture).map(|(p, parts)| p.as_ref().map(|_| sum(parts))).collect())
    }

    /// Only those that some picture of the batch needs.
    fn launches(&self, paints: &[Option<Paint>]) -> Vec<super::launch::Launch> {
        let (d, size, batch) = (&*self.buffers, self.size, self.batch);
        let plans = || at(&d.plans);
        let first = [plans(), at(&d.sources), at(&d.tables), at(&d.clouds), at(&d.paint[0])];
        let mut all = vec![augment::base(first, size, batch)];
        for index in 0..MOST_STEPS {
            let steps: Vec<&Step> = paints.iter().flatten().filter_map(|p| p.steps.get(index)).collect();
            if steps.is_empty() {
                break;
            }
            let (from, to) = (&d.paint[index % 2], &d.paint[(index + 1) % 2]);
            if steps.iter().any(|s| s.needs_levels()) {
                all.push(augment::levels([plans(), at(from), at(&d.stats)], index, size, batch));
            }
            if steps.iter().any(|s| s.is_sharpness()) {
                all.extend(augment::box_mean([plans(), at(from), at(&d.soft)], index, size, batch));
            }
            let args = [plans(), at(from), at(&d.soft), at(&d.stats), at(&d.tables), at(to)];
            all.push(augment::step(args, index, size, batch));
        }
        let args = self.blended(at(&d.sums));
        all.push(blend::change(args, size, batch));
        all
    }

    fn blended(&self, out: Arg) -> [Arg; 6] {
        let d = &*self.buffers;
        [at(&d.plans), at(&d.pictures), at(&d.paint[0]), at(&d.paint[1]), at(&d.masks), out]
    }

    /// The masks, one picture's behind the other's.
    pub fn masks(&mut self) -> Result<&[f32], ProgramError> {
        let (d, masks) = (&*self.buffers, &mut self.host.masks);
        self.queue.batch(|q| q.download(masks, &d.masks))?;
        Ok(self.host.masks.as_slice())
    }

    /// The number by which the driver knows the stream of all but the blend.
    pub(super) fn stream_number(&self) -> u64 {
        self.queue.stream_number()
    }

    /// The launch that writes the blends, (value − mean) / deviation, to an fp16 input at this address,
    /// and the memory it needs.
    pub(super) fn output(
        &self,
        out: u64,
        mean: [f32; 3],
        deviation: [f32; 3],
    ) -> (super::launch::Launch, Arc<dyn Send + Sync>) {
        let args = self.blended(Arg::Struct(out.to_le_bytes().to_vec()));
        (blend::blend(args, mean, deviation, self.size, self.batch), Arc::clone(&self.buffers) as _)
    }
}
