"""The LightningModule and the LightningDataModule of clipse; `experiment.train` runs them.

B images of a batch, T texts, N images of a split, D the shared width.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset, Subset

from clip_common.backbones import Tokens, move
from clip_common.devices import divide_batch, gather_from_ranks
from clip_common.loader import epoch_seed
from clip_common.losses import embed_in_parts
from clip_common.metrics import image_text_retrieval
from clip_common.training import ResumableLoader, ShuffledBatchSampler, optimizer_and_schedule
from clipse.config import Config
from clipse.data import (
    Batch,
    CLIPCollator,
    DataError,
    Flickr8kDataset,
    ImageCache,
    ImageRecord,
    Sample,
    TopicalBatchSampler,
    find_topics,
    read_groups,
)
from clipse.data.batches import check_clusters
from clipse.models.features import FrozenFeatures, ImageFeatureDataset
from clipse.models.retrieval import RetrievalModel
from clipse.training.losses import build_loss
from clipse.training.references import ReferenceModel

TEXTS_AT_ONCE = 256
"""Captions encoded at a time when topics are found."""


class RetrievalModule(L.LightningModule):
    """Training steps, and retrieval metrics over the whole validation split at the end of each epoch.

    Args:
        model: The towers and the temperature.
        config: The run's configuration.
        image_rows, text_rows: Whether batches hold feature rows of a locked trunk instead of pixels or tokens.

    Raises:
        ValueError: A loss that cannot be built, or `data.mini_batch` for a model with batch normalisation.
    """

    def __init__(self, model: RetrievalModel, config: Config, *, image_rows: bool, text_rows: bool) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.image_rows = image_rows
        self.text_rows = text_rows
        if config.data.mini_batch is not None and any(isinstance(part, _BatchNorm) for part in model.modules()):
            raise ValueError(
                "data.mini_batch encodes rows separately, but this model's batch normalisation makes them depend on "
                "each other: leave data.mini_batch out, or use a transformer"
            )
        self.loss = build_loss(config.loss)
        self.contrastive_chance: float | None = None
        self.validated: list[tuple[Tensor, ...]] = []
        decay = {"frozen": 1.0, "ema": config.loss.ema_decay}.get(config.loss.references)
        self.reference = None if decay is None else ReferenceModel(model, decay=decay)

    def on_train_epoch_start(self) -> None:
        """Find the topics of the training images if they are due; a resume inside an epoch reads the saved ones."""
        epoch, topical = self.current_epoch, self.config.data.topical
        # overfitting repeats the batches of the first epoch, so their topics are kept
        again = topical.every > 0 and epoch % topical.every == 0 and self.config.trainer.overfit_batches is None
        if topical.fraction and (epoch == 0 or again):
            data = self.trainer.datamodule
            features_ND = data.caption_features(self.model, frozen=epoch == 0)
            found = find_topics(
                features_ND, clusters=topical.clusters, seed=epoch_seed(self.config.trainer.seed, epoch)
            )
            data.set_topics(self.trainer.strategy.broadcast(found))  # the same on all devices, whatever their rounding

    def configure_optimizers(self) -> dict[str, Any]:
        return optimizer_and_schedule(self, self.config.optim)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Encode a batch to (B, D) images and (T, D) texts, not normalised."""
        image = partial(self.model.embed_image, rows=self.image_rows)
        text = partial(self.model.embed_text, rows=self.text_rows)
        return self._in_parts(image, batch.images_B3HW), self._in_parts(text, batch.tokens)

    def references(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Return the reference features (B, ·) and (T, ·) for the weights; None to use the embeddings themselves."""
        if self.reference is None:
            return None
        image = partial(self.reference.image, rows=self.image_rows)
        text = partial(self.reference.text, rows=self.text_rows)
        return self._in_parts(image, batch.images_B3HW), self._in_parts(text, batch.tokens)

    def _in_parts(self, encoder: Callable[[Any], Tensor], inputs: Tokens) -> Tensor:
        size = self.config.data.mini_batch
        return encoder(inputs) if size is None else embed_in_parts(encoder, inputs, size)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the tensors of a batch to the device; file names are kept."""
        return Batch(
            images_B3HW=batch.images_B3HW.to(device, non_blocking=True),
            tokens=move(batch.tokens, device),
            image_ids_B=batch.image_ids_B.to(device),
            owner_T=batch.owner_T.to(device),
            text_ids_T=batch.text_ids_T.to(device),
            same_T3=batch.same_T3,  # on the CPU: reading a value back would wait for the device
            names=batch.names,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        image_BD, text_TD = self.embed(batch)
        # an image with several captions is repeated for each; rows of one image are not negatives of each other
        references = self.references(batch)
        if references is not None:
            references = (references[0][batch.owner_T], references[1])
        scale = self.model.logit_scale()
        output = self.loss(
            image_BD[batch.owner_T],
            text_TD,
            scale=scale,
            references=references,
            image_ids=batch.image_ids_B[batch.owner_T],
            text_ids=batch.text_ids_T,
            bias=self.model.logit_bias,
        )
        self.contrastive_chance = self.loss.chance(batch.same_T3, processes=self.trainer.world_size)
        self.log("train/loss", output.loss, prog_bar=True)
        self.log("train/temperature", 1.0 / scale.detach())
        self.log_dict({f"sanw/{name}": value for name, value in output.statistics.items()})
        return output.loss

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Step, then clamp the logit scale and update the references, so that a checkpoint holds all three."""
        super().optimizer_step(*arguments, **keywords)
        self.model.logit_scale.clamp_()
        if self.reference is not None:
            self.reference.update(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # checkpoints leave frozen parameters out, but a moving average cannot be rebuilt from the configuration
        if self.reference is not None and self.config.loss.references == "ema":
            checkpoint["reference"] = self.reference.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.reference is not None and "reference" in checkpoint:
            self.reference.load_state_dict(checkpoint["reference"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        image_BD, text_TD = self.embed(batch)
        text_ids = batch.image_ids_B[batch.owner_T], batch.text_ids_T
        part = (batch.image_ids_B, image_BD.float(), *text_ids, text_TD.float())
        self.validated.append(tuple(tensor.cpu() for tensor in (*part, *(self.references(batch) or ()))))

    def on_validation_epoch_end(self) -> None:
        parts = map(torch.cat, zip(*gather_from_ranks(self.validated), strict=True))
        image_ids, image_ND, of_image_T, text_ids_T, text_TD, *references = parts
        self.validated = []
        order = image_ids.argsort()
        image_ND, owner_T = image_ND[order], torch.searchsorted(image_ids[order], of_image_T)
        result = image_text_retrieval(image_ND, text_TD, owner_T)
        self.log_dict({f"val/{key}": value for key, value in result.metrics.items()})
        first_N = find_first_of_each(owner_T, len(image_ND))
        compared = (references[0][order], references[1][first_N]) if references else None
        loss = self.validation_loss(image_ND, text_TD[first_N], text_ids=text_ids_T[first_N], references=compared)
        self.log("val/loss", loss)

    def validation_loss(
        self,
        image_ND: Tensor,
        text_ND: Tensor,
        *,
        text_ids: Tensor | None = None,
        references: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Compute the training loss on N pairs, in batches of the training size (one smaller batch if N is smaller).

        Every rank has all pairs and passes its share of each batch to the loss, which gathers the shares.
        """
        size = min(self.config.data.batch_size, len(image_ND))
        rank, world = self.trainer.global_rank, self.trainer.world_size
        losses = []
        for start in range(0, len(image_ND) - size + 1, size):
            mine = slice(start + rank, start + size, world)
            image_BD, text_BD = image_ND[mine].to(self.device), text_ND[mine].to(self.device)
            compared = references and (references[0][mine].to(self.device), references[1][mine].to(self.device))
            ids = None if text_ids is None else text_ids[mine].to(self.device)
            scale, bias = self.model.logit_scale(), self.model.logit_bias
            output = self.loss(image_BD, text_BD, scale=scale, references=compared, text_ids=ids, bias=bias)
            losses.append(output.loss)
        return torch.stack(losses).mean()

    def describe_batch(self, batch: Batch) -> str:
        """Return the file names of a batch, for the message about a loss that is not finite."""
        return ", ".join(batch.names)


def find_first_of_each(owner_T: Tensor, images: int) -> Tensor:
    """Return (N,) long: the position of the first caption of each image."""
    positions = torch.arange(len(owner_T))
    return torch.full((images,), len(owner_T)).scatter_reduce(0, owner_T, positions, reduce="amin")


class RetrievalData(L.LightningDataModule):
    """Loaders of the training and validation splits; each rank loads its own rows.

    Args:
        model: Provides the preprocessing and the tokenizer.
        records: Images of `train` and `val`.
        config: The run's configuration.
        features: Feature rows of locked trunks, used instead of pixels and tokens.
        image_caches: Split → decoded images; a split without cache is decoded each time.

    Raises:
        DataError: A groups file that cannot be used, more topics than images, or both kinds of batches at once.
    """

    def __init__(
        self,
        model: RetrievalModel,
        records: Mapping[str, Sequence[ImageRecord]],
        config: Config,
        *,
        features: FrozenFeatures,
        image_caches: Mapping[str, ImageCache],
    ) -> None:
        super().__init__()
        self.bundle = model.bundle
        self.records = records
        self.config = config
        self.features = features
        self.image_caches = image_caches
        together = config.data.together
        self.groups = read_groups(Path(str(config.data.root)) / together, records["train"]) if together else None
        self.sampler: ShuffledBatchSampler | None = None
        self.topics_N = torch.zeros(len(records["train"]), dtype=torch.long)
        if config.data.topical.fraction:
            check_clusters(config.data.topical.clusters, images=len(records["train"]))
            if together:
                raise DataError(
                    "data.together and data.topical.fraction both decide which images share a batch: set one of them"
                )

    def train_dataloader(self) -> ResumableLoader:
        assert self.trainer is not None
        data, world = self.config.data, self.trainer.world_size
        place: dict[str, Any] = {
            "batch_size": divide_batch(data.batch_size, world=world),
            "seed": self.config.trainer.seed,
            "rank": self.trainer.global_rank,
            "world": world,
        }
        if data.topical.fraction:
            self.sampler = TopicalBatchSampler(self.topics_N, fraction=data.topical.fraction, **place)
        else:
            self.sampler = ShuffledBatchSampler(len(self.records["train"]), groups=self.groups, **place)
        return ResumableLoader(
            self.dataset("train"),
            batch_sampler=self.sampler,
            collate_fn=self.collate,
            num_workers=data.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the topics: a resume cannot find them again, because the model has changed since."""
        return {"topics": self.topics_N} if self.config.data.topical.fraction else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the saved topics."""
        self.set_topics(state_dict["topics"])

    def set_topics(self, topics_N: Tensor) -> None:
        """Use these topics from the next epoch on, or for the rest of a resumed one."""
        self.topics_N = topics_N
        if isinstance(self.sampler, TopicalBatchSampler):
            self.sampler.set_topics(topics_N)

    @torch.no_grad()
    def caption_features(self, model: RetrievalModel, *, frozen: bool) -> Tensor:
        """Compute (N, D) mean text features of each training image's unit-length caption features, on the CPU.

        Args:
            model: The current model; it is run in eval mode.
            frozen: With a locked text tower, take the trunk's features without the trainable head.
        """
        records, size = self.records["train"], TEXTS_AT_ONCE
        captions = [text for record in records for text in record.captions]
        training = model.training
        model.eval()
        parts = []
        for start in range(0, len(captions), size):
            tokens = self.collate.tokenizer(captions[start : start + size])
            if self.features.texts is None:
                text_TD = model.text_tower(move(tokens, model.device))
            else:
                text_TD = tokens if frozen else model.text_tower.head(tokens.to(model.device))
            parts.append(functional.normalize(text_TD.float(), dim=1).cpu())
        model.train(training)
        of_image = torch.cat(parts).split([len(record.captions) for record in records])
        return torch.stack([text_TD.mean(dim=0) for text_TD in of_image])

    def val_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        rows = range(self.trainer.global_rank, len(self.records["val"]), self.trainer.world_size)
        dataset = Subset(self.dataset("val"), rows)
        return DataLoader(
            dataset,
            batch_size=self.config.data.batch_size,
            num_workers=self.config.data.workers,
            collate_fn=self.collate,
        )

    @property
    def collate(self) -> CLIPCollator:
        """Collator with the tokenizer, or with the feature rows of a locked text tower in its place."""
        return CLIPCollator(self.features.texts or self.bundle.tokenizer)

    def dataset(self, split: str) -> Dataset[Sample]:
        """Return the dataset of a split: preprocessed pixels, or feature rows of a locked image trunk."""
        training = split == "train"
        captions = self.config.data.captions if training else "all"
        seed = self.config.trainer.seed
        if self.features.images:
            return ImageFeatureDataset(self.records[split], self.features.images[split], seed=seed, captions=captions)
        augment = training and self.config.data.augment
        return Flickr8kDataset(
            self.records[split],
            preprocess=self.bundle.train_preprocess if augment else self.bundle.preprocess,
            seed=seed,
            captions=captions,
            cache=self.image_caches.get(split),
            augment=augment,
        )
