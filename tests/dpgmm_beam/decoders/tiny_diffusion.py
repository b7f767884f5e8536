"""Weights of diffusion decoders that are random and tiny, in the layout of the real ones."""

import json
from pathlib import Path

import torch

DIMENSION = 16


def _seeded() -> None:
    torch.manual_seed(0)


def kandinsky(folder: Path) -> Path:
    """A decoder of Kandinsky 2.2 in folder/decoder; its prior is in folder/prior."""
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel

    _seeded()
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        encoder_hid_dim=DIMENSION,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=8,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
    movq = VQModel(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=4,
        vq_embed_dim=4,
    )
    scheduler = DDPMScheduler(variance_type="learned_range")
    KandinskyV22Pipeline(unet, scheduler, movq).save_pretrained(folder / "decoder")
    return folder / "decoder"


def kandinsky_prior(folder: Path, mean: float, std: float) -> Path:
    """A prior whose embeddings have this mean and deviation in each coordinate, with its image encoder."""
    from diffusers import PriorTransformer
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    _seeded()
    prior = PriorTransformer(
        num_attention_heads=1, attention_head_dim=8, num_layers=1, embedding_dim=DIMENSION
    )
    prior.clip_mean.data.fill_(mean)
    prior.clip_std.data.fill_(std)
    prior.save_pretrained(folder / "prior" / "prior")
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=8,
        patch_size=4,
        projection_dim=DIMENSION,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "prior" / "image_encoder")
    return folder / "prior"


def unclip(folder: Path, mean: float, std: float, words: bool = False) -> Path:
    """A Stable unCLIP whose embeddings have this mean and deviation; with a text encoder or without."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableUnCLIPImg2ImgPipeline,
        UNet2DConditionModel,
    )
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    _seeded()
    normalizer = StableUnCLIPImageNormalizer(DIMENSION)
    normalizer.mean.data.fill_(mean)
    normalizer.std.data.fill_(std)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=(2, 4),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * DIMENSION,
        cross_attention_dim=8,
        layers_per_block=1,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    tokenizer, text_encoder = _words(folder) if words else (None, None)
    StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=None,
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        scheduler=DDIMScheduler(),
        vae=vae,
    ).save_pretrained(folder / "unclip")
    return folder / "unclip"


def _words(folder: Path):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}
    (folder / "words").mkdir()
    (folder / "words" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "words" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "words" / "vocab.json"), str(folder / "words" / "merges.txt"), model_max_length=4
    )
    config = CLIPTextConfig(
        vocab_size=4,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    return tokenizer, CLIPTextModel(config)
