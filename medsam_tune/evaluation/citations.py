"""BibTeX of what a run rests on: the method's papers, the weights, the data, and this software."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from medsam_tune import __version__


@dataclass(frozen=True)
class Reference:
    """Hold one paper or data set.

    Attributes:
        key: Its BibTeX key.
        authors: In BibTeX's form.
        title: Its title.
        year: Of its first publication.
        arxiv: Its number there, or nothing.
        doi: Its DOI, or nothing.
        journal: Where it appeared, or nothing.
        told_by: Words of a recipe's comment that mean this paper.
    """

    key: str
    authors: str
    title: str
    year: int
    arxiv: str = ""
    doi: str = ""
    journal: str = ""
    told_by: tuple[str, ...] = ()


REFERENCES = tuple(
    Reference(*values)
    for values in (
        ("shaharabany2023autosam", "Shaharabany, Tal and Dahan, Aviad and Giryes, Raja and Wolf, Lior",
         "{AutoSAM}: Adapting {SAM} to Medical Images by Overloading the Prompt Encoder", 2023, "2306.06370", "", "",
         ("Shaharabany", "AutoSAM")),
        ("wu2023msa", "Wu, Junde and others",
         "Medical {SAM} Adapter: Adapting Segment Anything Model for Medical Image Segmentation", 2023, "2304.12620", "", "",
         ("Wu et al., arXiv 2304.12620", "2304.12620")),
        ("ma2024medsam", "Ma, Jun and He, Yuting and Li, Feifei and Han, Lin and You, Chenyu and Wang, Bo",
         "Segment Anything in Medical Images", 2024, "", "10.1038/s41467-024-44824-z", "Nature Communications",
         ("Ma et al. 2024", "MedSAM's")),
        ("hu2021lora", "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and "
         "Wang, Shean and Wang, Lu and Chen, Weizhu", "{LoRA}: Low-Rank Adaptation of Large Language Models", 2021,
         "2106.09685", "", "", ("2106.09685",)),
        ("chen2022adaptformer", "Chen, Shoufa and others",
         "{AdaptFormer}: Adapting Vision Transformers for Scalable Visual Recognition", 2022, "2205.13535", "", "",
         ("AdaptFormer",)),
        ("benzaken2022bitfit", "Ben Zaken, Elad and Ravfogel, Shauli and Goldberg, Yoav",
         "{BitFit}: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", 2021,
         "2106.10199", "", "", ("BitFit",)),
        ("paranjape2023adaptivesam", "Paranjape, Jay N. and others",
         "{AdaptiveSAM}: Towards Efficient Tuning of {SAM} for Surgical Scene Segmentation", 2023, "2308.03726", "", "",
         ("AdaptiveSAM",)),
        ("zhong2024convlora", "Zhong, Zihan and others",
         "Convolution Meets {LoRA}: Parameter Efficient Finetuning for Segment Anything Model", 2024, "2401.17868", "", "",
         ("Conv-LoRA",)),
        ("jie2023fact", "Jie, Shibo and Deng, Zhi-Hong",
         "{FacT}: Factor-Tuning for Lightweight Adaptation on Vision Transformer", 2022, "2212.03145", "", "", ("FacT",)),
        ("chen2023masam", "Chen, Cheng and others",
         "{MA-SAM}: Modality-agnostic {SAM} Adaptation for {3D} Medical Image Segmentation", 2023, "2309.08842", "", "",
         ("MA-SAM",)),
        ("gong2023sam3d", "Gong, Shizhan and others",
         "{3DSAM}-adapter: Holistic Adaptation of {SAM} from {2D} to {3D} for Promptable Medical Image Segmentation", 2023,
         "2306.13465", "", "", ("3DSAM-adapter",)),
        ("kirillov2023sam", "Kirillov, Alexander and Mintun, Eric and Ravi, Nikhila and Mao, Hanzi and Rolland, Chloe and "
         "Gustafson, Laura and Xiao, Tete and Whitehead, Spencer and Berg, Alexander C. and Lo, Wan-Yen and "
         "Doll{\\'a}r, Piotr and Girshick, Ross", "Segment Anything", 2023, "2304.02643", "", "",
         ("Kirillov",)),
        ("cheng2023sammed2d", "Cheng, Junlong and others", "{SAM-Med2D}", 2023, "2308.16184", "", "", ("SAM-Med2D",)),
        ("chai2023ladder", "Chai, Shurong and others",
         "Ladder Fine-tuning approach for {SAM} integrating complementary network", 2023, "2306.12737", "", "",
         ("SAM-LST",)),
        ("basu2023norm", "Basu, Samyadeep and others",
         "Strong Baselines for Parameter Efficient Few-Shot Fine-tuning", 2023, "2304.01917", "", "", ("Basu",)),
        ("teuber2025peft", "Teuber, Carolin and Archit, Anwai and Pape, Constantin",
         "Parameter Efficient Fine-Tuning of Segment Anything Model for Biomedical Imaging", 2025, "2502.00418", "", "",
         ("Teuber",)),
        ("chen2023samadapter", "Chen, Tianrun and others",
         "{SAM} Fails to Segment Anything? -- {SAM-Adapter}: Adapting {SAM} in Underperformed Scenes: Camouflage, Shadow, and "
         "More", 2023, "2304.09148", "", "",
         ("SAM-Adapter",)),
        ("zhang2023samaug", "Zhang, Yizhe and others",
         "Input Augmentation with {SAM}: Boosting Medical Image Segmentation with Segmentation Foundation Model", 2023,
         "2304.11332", "", "", ("SAMAug",)),
        ("zhang2023samed", "Zhang, Kaidong and Liu, Dong",
         "Customized Segment Anything Model for Medical Image Segmentation", 2023, "2304.13785", "", "", ("SAMed",)),
        ("lian2022ssf", "Lian, Dongze and others",
         "Scaling \\& Shifting Your Features: A New Baseline for Efficient Model Tuning", 2022, "2210.08823", "", "",
         ("SSF",)),
        ("zhang2023mobilesam", "Zhang, Chaoning and others",
         "Faster Segment Anything: Towards Lightweight {SAM} for Mobile Applications", 2023, "2306.14289", "", "",
         ("MobileSAM",)),
        ("he2021mae", "He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and Girshick, Ross",
         "Masked Autoencoders Are Scalable Vision Learners", 2021, "2111.06377", "", "", ("2111.06377",)),
        ("tamkin2021dabs", "Tamkin, Alex and others",
         "{DABS}: A Domain-Agnostic Benchmark for Self-Supervised Learning", 2021, "2111.12062", "", "", ("2111.12062",)),
        ("ronneberger2015unet", "Ronneberger, Olaf and Fischer, Philipp and Brox, Thomas",
         "{U-Net}: Convolutional Networks for Biomedical Image Segmentation", 2015, "1505.04597", "", "", ("U-Net",)),
        ("antonelli2022msd", "Antonelli, Michela and others", "The Medical Segmentation Decathlon", 2022, "",
         "10.1038/s41467-022-30695-9", "Nature Communications"),
        ("momot2022carotid", "Momot, Agata", "Common Carotid Artery Ultrasound Images", 2022, "", "10.17632/d4xt63mgjm.1",
         "Mendeley Data, V1"),
    )
)  # fmt: skip
OF_WEIGHTS = {
    "lite_medsam": ("ma2024medsam",),
    "medsam_vit_b": ("ma2024medsam", "kirillov2023sam"),
    "mobile_sam": ("zhang2023mobilesam", "kirillov2023sam"),
    "sam_vit_b": ("kirillov2023sam",),
    "sam_vit_l": ("kirillov2023sam",),
    "sam_vit_h": ("kirillov2023sam",),
}
OF_SAMPLES = {"hippocampus": ("antonelli2022msd",), "carotid": ("momot2022carotid",)}


def method_keys(comment: str) -> list[str]:
    """Return the keys of the papers that a recipe's comment speaks of, in the order of ``REFERENCES``."""
    return [each.key for each in REFERENCES if any(words in comment for words in each.told_by)]


def bibtex(keys: Iterable[str]) -> str:
    """Return the entries of the keys, each once, and that of this software."""
    wanted = set(keys)
    return "\n\n".join([*(_entry(each) for each in REFERENCES if each.key in wanted), _software()])


def _entry(reference: Reference) -> str:
    fields = {
        "author": reference.authors,
        "title": reference.title,
        "year": str(reference.year),
        "journal": reference.journal,
        "eprint": reference.arxiv,
        "archiveprefix": "arXiv" if reference.arxiv else "",
        "doi": reference.doi,
    }
    return _written("article" if reference.journal else "misc", reference.key, fields)


def _software() -> str:
    fields = {"author": "{The medsam\\_tune authors}", "title": "medsam\\_tune", "version": __version__}
    return _written("software", "medsam_tune", fields)


def _written(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items() if value)
    return f"@{kind}{{{key},\n{lines}}}"
