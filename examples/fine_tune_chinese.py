"""Fine-tune a small Chinese classifier on the sentences below, ready for `make serve`.

    .venv/bin/python examples/fine_tune_chinese.py --output ./chinese-classifier
    make serve MODEL=./chinese-classifier
    make classify TEXT=球队在加时赛中进球夺冠

Without --base it trains a two-layer BERT from scratch, in seconds and without a download: a toy for sixty sentences.
With `--base bert-base-chinese`, or another BERT-like checkpoint, it fine-tunes that checkpoint. Either result is an
ordinary Hugging Face checkpoint directory, which is all that `make repo` needs.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, PreTrainedTokenizerFast

SENTENCES = {
    "财经": [
        "央行维持基准利率不变", "人民币汇率创三个月新高", "银行下调个人住房贷款利率", "基金公司第三季度利润增长",
        "消费者物价指数同比上涨", "国债收益率小幅回落", "养老金投资收益超过预期", "出口企业订单明显增加",
        "信用卡逾期率有所下降", "保险公司推出新的理财产品", "股市收盘上涨百分之二", "财政部公布全年预算支出",
        "外汇储备连续两月回升", "小微企业获得低息贷款", "黄金价格跌至半年低点", "通货膨胀压力正在缓解",
        "投资者等待央行利率决定", "银行存款利息再次下调", "企业债券发行规模扩大", "税收收入同比增长百分之五",
    ],
    "体育": [
        "主队在加时赛中攻入制胜球", "国家队三比零战胜对手", "她打破百米自由泳世界纪录", "教练赛后称赞年轻球员",
        "马拉松比赛吸引三万名选手", "羽毛球女双夺得冠军", "前锋受伤将缺席两周比赛", "球迷庆祝球队升入甲级联赛",
        "篮球联赛总决赛今晚开打", "门将扑出关键点球", "乒乓球小将首次晋级决赛", "运动员抵达奥运村备战",
        "裁判判罚引发球员抗议", "排球女将连胜五场", "自行车赛第三赛段结束", "网球名将宣布退役",
        "球队签下新的中场球员", "田径锦标赛金牌榜更新", "足球队客场逼平劲敌", "滑雪选手刷新个人最好成绩",
    ],
    "科技": [
        "新款手机搭载更快的芯片", "研究人员训练出更小的语言模型", "卫星成功进入预定轨道", "工程师修复系统安全漏洞",
        "自动驾驶汽车开始路测", "电池技术让续航翻倍", "量子计算机完成新的实验", "开源社区发布新版编译器",
        "机器人学会整理房间", "科学家发现新型超导材料", "应用程序新增离线翻译功能", "数据中心改用风能供电",
        "芯片工厂开始量产", "望远镜拍到遥远星系图像", "软件更新提升电脑速度", "人工智能辅助医生诊断",
        "浏览器默认开启加密连接", "探测器传回火星照片", "网络延迟降低一半", "程序员用新算法压缩数据",
    ],
}  # fmt: skip
HELD_OUT = 4  # sentences per label
SEED, EPOCHS, BATCH_SIZE = 7, 30, 8


def split() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(text, class id) pairs for training, and for evaluation."""
    train, held_out = [], []
    for class_id, texts in enumerate(SENTENCES.values()):
        train += [(text, class_id) for text in texts[:-HELD_OUT]]
        held_out += [(text, class_id) for text in texts[-HELD_OUT:]]
    return train, held_out


def character_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character, as in Chinese BERTs; its vocabulary is the characters of `texts`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(set("".join(texts)))])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=128,
    )  # fmt: skip


def fine_tune(output: Path, base: str) -> None:
    """Train, print the accuracy on held-out sentences, and save a checkpoint directory."""
    torch.manual_seed(SEED)
    train, held_out = split()
    names = dict(enumerate(SENTENCES))
    labels = {"id2label": names, "label2id": {name: class_id for class_id, name in names.items()}}
    if base:
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(names), **labels)
    else:
        tokenizer = character_tokenizer([text for text, _ in train])
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=256, max_position_embeddings=128, num_labels=len(names), **labels,
        )  # fmt: skip
        model = AutoModelForSequenceClassification.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5 if base else 1e-3)
    shuffle = random.Random(SEED).shuffle
    model.train()
    for epoch in range(3 if base else EPOCHS):
        shuffle(train)
        total = 0.0
        for start in range(0, len(train), BATCH_SIZE):
            texts, class_ids = zip(*train[start : start + BATCH_SIZE])
            inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            loss = model(**inputs, labels=torch.tensor(class_ids)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(texts)
        if epoch % 10 == 9 or base:
            print(f"epoch {epoch + 1}: mean loss {total / len(train):.3f}", flush=True)
    model.eval()
    with torch.inference_mode():
        inputs = tokenizer([text for text, _ in held_out], padding=True, truncation=True, return_tensors="pt")
        predicted = model(**inputs).logits.argmax(1).tolist()
    right = sum(class_id == wanted for class_id, (_, wanted) in zip(predicted, held_out))
    print(f"{right} of {len(held_out)} held-out sentences right")
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    print(f"written: {output}; next: make serve MODEL={output}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fine-tune a small Chinese classifier.",
        epilog="Example: python examples/fine_tune_chinese.py --output ./chinese-classifier",
    )
    parser.add_argument("--output", type=Path, default=Path("chinese-classifier"), help="checkpoint directory to write")
    parser.add_argument("--base", default="", help="checkpoint directory or hub id to start from; default: none")
    arguments = parser.parse_args()
    fine_tune(arguments.output, arguments.base)


if __name__ == "__main__":
    main()
